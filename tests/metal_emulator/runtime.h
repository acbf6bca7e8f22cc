// What a compiled kernel and the runtime that schedules its threads know of each other.
// No libc function is declared here, so that a kernel sees only what Metal would offer it.
#pragma once
#include <stddef.h>
#include <stdint.h>

struct uint3 {
  unsigned x, y, z;
};

namespace emulator {

constexpr unsigned SIMD_WIDTH = 32;

// One field per Metal attribute, under its name: the generated entry hands them on by name.
struct Position {
  uint3 thread_position_in_grid;
  uint3 thread_position_in_threadgroup;
  uint3 threadgroup_position_in_grid;
  uint3 threads_per_grid;
  uint3 grid_size;
  uint3 threads_per_threadgroup;
  uint3 dispatch_threads_per_threadgroup;
  uint3 threadgroups_per_grid;
  unsigned thread_index_in_threadgroup;
  unsigned thread_index_in_simdgroup;
  unsigned simdgroup_index_in_threadgroup;
  unsigned simdgroups_per_threadgroup;
  unsigned dispatch_simdgroups_per_threadgroup;
  unsigned threads_per_simdgroup;
  unsigned thread_execution_width;
};

// An operation that several threads must execute together, and its line in the kernel's text.
struct Site {
  const char* operation;
  unsigned line;
};

// One thread of the kernel. The generated code defines it, the runtime calls it.
void kernel_entry(void* const* buffers, const Position& at);

// The runtime defines the rest.

void threadgroup_rendezvous(Site site);
void simdgroup_rendezvous(Site site);

// Publishes 8 bytes to the simdgroup, waits for its lanes, and returns what each published.
const uint64_t* exchange(uint64_t bits, Site site);

unsigned lane();
unsigned lanes_in_simdgroup();

// Fills a threadgroup variable with 0xff when the first thread of a threadgroup reaches it.
void enter_threadgroup_variable(void* variable, size_t bytes, unsigned& last_threadgroup);

[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace emulator
