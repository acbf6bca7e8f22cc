// Runs a kernel's grid on one CPU thread: each thread of a threadgroup is a fiber that runs until
// it must wait for others. Which one goes on next is the schedule's choice, so a kernel that lacks
// a barrier computes something else under another schedule.
//
// program <schedule> <grid x y z> <threadgroup x y z> <r|w><bytes>...
//   reads all buffers from stdin, one after the other, and writes those marked w to stdout.
//   <schedule>: forward, reverse, or the seed of a random one.
#include "runtime.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <string>
#include <vector>

namespace emulator {
namespace {

constexpr size_t STACK_BYTES = 256 << 10;
constexpr size_t GUARD_BYTES = 64 << 10;  // a page, where pages are large
constexpr size_t THREADGROUP_MEMORY = 32 << 10;  // what every Apple GPU has
constexpr int BAD_KERNEL = 3, BAD_CALL = 4;

// ---- contexts

struct Context {
  ucontext_t start;
  jmp_buf place;
  bool started = false;
};

// swapcontext makes a system call each time to save the signal mask, so it only serves where a
// sanitizer must follow from stack to stack; otherwise a context is started once and then jumped
// into.
void switch_context(Context& from, Context& to) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  swapcontext(&from.start, &to.start);
#else
  from.started = true;
  if (_setjmp(from.place) != 0) return;
  if (to.started) _longjmp(to.place, 1);
  to.started = true;
  setcontext(&to.start);
#endif
}

// ---- threads

// A place where a group of threads waits until all have come.
struct Rendezvous {
  unsigned expected = 0, arrived = 0, completed = 0;
  Site site{};
};

struct Fiber {
  Context context;
  Position at;
  Rendezvous* waiting_at = nullptr;
  unsigned waiting_since = 0;  // the rendezvous' count of completions when this thread came
  unsigned exchanges = 0;
  bool finished = false;

  bool can_run() const {
    return !finished && (!waiting_at || waiting_at->completed != waiting_since);
  }
};

struct Simdgroup {
  Rendezvous rendezvous;
  // Two sets in turn: a lane may publish again while others still read what came before.
  uint64_t slots[2][SIMD_WIDTH];
};

enum class Order { forward, reverse, random };

Order schedule;
std::mt19937 randomness;
std::vector<Fiber> fibers;
std::vector<Simdgroup> simdgroups;
Rendezvous whole_threadgroup;
Context scheduler;
Fiber* current;
std::vector<void*> buffers;
unsigned threadgroups_begun = 0;
size_t threadgroup_bytes = 0;

void run_fiber() {
  for (;;) {  // the same fiber serves one threadgroup after the other
    kernel_entry(buffers.data(), current->at);
    current->finished = true;
    switch_context(current->context, scheduler);
  }
}

// A guard page ends each stack, so that an overflow is a crash instead of another thread's data.
void make_fibers(unsigned count) {
  void* stacks = mmap(nullptr, count * STACK_BYTES, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stacks == MAP_FAILED) fail("no memory for the stacks");
  fibers.resize(count);
  for (unsigned i = 0; i < count; i++) {
    char* stack = static_cast<char*>(stacks) + i * STACK_BYTES;
    if (mprotect(stack, GUARD_BYTES, PROT_NONE) != 0) fail("cannot protect a stack");
    ucontext_t& start = fibers[i].context.start;
    getcontext(&start);
    start.uc_stack.ss_sp = stack;
    // Tops at unlike offsets: stacks a power of two apart would share a few lines of the cache.
    start.uc_stack.ss_size = STACK_BYTES - i % 64 * 1088;
    start.uc_link = nullptr;
    makecontext(&start, run_fiber, 0);
  }
}

void rendezvous(Rendezvous& meeting, Site site) {
  Fiber& me = *current;
  if (meeting.arrived == 0) {
    meeting.site = site;
  } else if (meeting.site.line != site.line || strcmp(meeting.site.operation, site.operation)) {
    fail("divergence: thread %u is at %s, line %u, while others wait at %s, line %u",
         me.at.thread_index_in_threadgroup, site.operation, site.line, meeting.site.operation,
         meeting.site.line);
  }
  if (++meeting.arrived == meeting.expected) {
    meeting.arrived = 0;
    ++meeting.completed;
    return;
  }
  me.waiting_at = &meeting;
  me.waiting_since = meeting.completed;
  switch_context(me.context, scheduler);
  me.waiting_at = nullptr;
}

Simdgroup& my_simdgroup() { return simdgroups[current->at.simdgroup_index_in_threadgroup]; }

// ---- threadgroups

std::vector<unsigned> in_order(unsigned count) {
  std::vector<unsigned> order(count);
  std::iota(order.begin(), order.end(), 0u);
  if (schedule == Order::reverse) std::reverse(order.begin(), order.end());
  if (schedule == Order::random) std::shuffle(order.begin(), order.end(), randomness);
  return order;
}

unsigned volume(uint3 size) { return size.x * size.y * size.z; }

uint3 unravel(unsigned index, uint3 size) {
  return {index % size.x, index / size.x % size.y, index / size.x / size.y};
}

unsigned simdgroups_of(unsigned threads) { return (threads + SIMD_WIDTH - 1) / SIMD_WIDTH; }

// The last threadgroup of a row is smaller where the grid isn't a multiple of the threadgroup.
uint3 size_at(uint3 first, uint3 grid, uint3 threadgroup) {
  return {std::min(threadgroup.x, grid.x - first.x), std::min(threadgroup.y, grid.y - first.y),
          std::min(threadgroup.z, grid.z - first.z)};
}

Position position(unsigned thread, uint3 size, uint3 threadgroup, uint3 first, Position shared) {
  Position at = shared;
  uint3 local = unravel(thread, size);
  at.thread_position_in_threadgroup = local;
  at.thread_position_in_grid = {first.x + local.x, first.y + local.y, first.z + local.z};
  at.threads_per_threadgroup = size;
  at.dispatch_threads_per_threadgroup = threadgroup;
  at.thread_index_in_threadgroup = thread;
  at.thread_index_in_simdgroup = thread % SIMD_WIDTH;
  at.simdgroup_index_in_threadgroup = thread / SIMD_WIDTH;
  at.simdgroups_per_threadgroup = simdgroups_of(volume(size));
  at.dispatch_simdgroups_per_threadgroup = simdgroups_of(volume(threadgroup));
  at.threads_per_simdgroup = at.thread_execution_width = SIMD_WIDTH;
  return at;
}

void prepare_simdgroups(unsigned threads) {
  simdgroups.assign(simdgroups_of(threads), Simdgroup());
  for (unsigned i = 0; i < simdgroups.size(); i++) {
    simdgroups[i].rendezvous.expected = std::min(SIMD_WIDTH, threads - i * SIMD_WIDTH);
    memset(simdgroups[i].slots, 0xff, sizeof simdgroups[i].slots);
  }
}

[[noreturn]] void fail_deadlocked(unsigned threads) {
  std::string report;
  unsigned returned = 0;
  Rendezvous* last = nullptr;
  for (unsigned i = 0; i < threads; i++) {
    Rendezvous* meeting = fibers[i].waiting_at;
    returned += fibers[i].finished;
    if (fibers[i].finished || meeting == last || report.size() > 400) continue;
    last = meeting;
    report += " thread " + std::to_string(i) + " waits at " + meeting->site.operation + ", line " +
              std::to_string(meeting->site.line) + " (" + std::to_string(meeting->arrived) +
              " of " + std::to_string(meeting->expected) + " threads came);";
  }
  fail("deadlock:%s %u threads have returned", report.c_str(), returned);
}

void run_threads(unsigned threads) {
  unsigned unfinished = threads;
  while (unfinished) {
    bool progress = false;
    for (unsigned i : in_order(threads)) {
      if (!fibers[i].can_run()) continue;
      progress = true;
      current = &fibers[i];
      switch_context(scheduler, fibers[i].context);
      unfinished -= fibers[i].finished;
    }
    if (!progress) fail_deadlocked(threads);
  }
}

void run_threadgroup(unsigned index, uint3 grid, uint3 threadgroup) {
  Position shared{};
  shared.threads_per_grid = shared.grid_size = grid;
  shared.threadgroups_per_grid = {(grid.x + threadgroup.x - 1) / threadgroup.x,
                                  (grid.y + threadgroup.y - 1) / threadgroup.y,
                                  (grid.z + threadgroup.z - 1) / threadgroup.z};
  uint3 group = shared.threadgroup_position_in_grid = unravel(index, shared.threadgroups_per_grid);
  uint3 first = {group.x * threadgroup.x, group.y * threadgroup.y, group.z * threadgroup.z};
  uint3 size = size_at(first, grid, threadgroup);
  unsigned threads = volume(size);

  ++threadgroups_begun;
  threadgroup_bytes = 0;
  whole_threadgroup = Rendezvous();
  whole_threadgroup.expected = threads;
  prepare_simdgroups(threads);
  for (unsigned i = 0; i < threads; i++) {
    fibers[i].at = position(i, size, threadgroup, first, shared);
    fibers[i].finished = false;
    fibers[i].exchanges = 0;
  }
  run_threads(threads);
}

// ---- the program

void* read_buffer(size_t bytes) {
  void* buffer = malloc(bytes);  // exactly so long: AddressSanitizer sees the byte after the last
  if (fread(buffer, 1, bytes, stdin) != bytes) {
    fprintf(stderr, "the input ended early\n");
    exit(BAD_CALL);
  }
  return buffer;
}

uint3 size_argument(char** words) {
  return {unsigned(atoi(words[0])), unsigned(atoi(words[1])), unsigned(atoi(words[2]))};
}

void set_schedule(const std::string& name) {
  schedule = name == "forward"   ? Order::forward
             : name == "reverse" ? Order::reverse
                                 : Order::random;
  if (schedule == Order::random) randomness.seed(unsigned(std::stoul(name)));
}

int run(int count, char** words) {
  constexpr int FIRST_BUFFER = 8;
  set_schedule(words[1]);
  uint3 grid = size_argument(words + 2), threadgroup = size_argument(words + 5);
  for (int i = FIRST_BUFFER; i < count; i++) buffers.push_back(read_buffer(atoll(words[i] + 1)));

  make_fibers(volume(threadgroup));
  unsigned groups = (grid.x + threadgroup.x - 1) / threadgroup.x *
                    ((grid.y + threadgroup.y - 1) / threadgroup.y) *
                    ((grid.z + threadgroup.z - 1) / threadgroup.z);
  for (unsigned index : in_order(groups)) run_threadgroup(index, grid, threadgroup);

  for (int i = FIRST_BUFFER; i < count; i++)
    if (words[i][0] == 'w') fwrite(buffers[i - FIRST_BUFFER], 1, atoll(words[i] + 1), stdout);
  return fflush(stdout) == 0 ? 0 : BAD_CALL;
}

}  // namespace

void threadgroup_rendezvous(Site site) { rendezvous(whole_threadgroup, site); }

void simdgroup_rendezvous(Site site) { rendezvous(my_simdgroup().rendezvous, site); }

const uint64_t* exchange(uint64_t bits, Site site) {
  Simdgroup& group = my_simdgroup();
  uint64_t* slots = group.slots[current->exchanges++ % 2];
  slots[lane()] = bits;
  rendezvous(group.rendezvous, site);
  return slots;
}

unsigned lane() { return current->at.thread_index_in_simdgroup; }

unsigned lanes_in_simdgroup() { return my_simdgroup().rendezvous.expected; }

void enter_threadgroup_variable(void* variable, size_t bytes, unsigned& last_threadgroup) {
  if (last_threadgroup == threadgroups_begun) return;
  last_threadgroup = threadgroups_begun;
  memset(variable, 0xff, bytes);
  threadgroup_bytes += bytes;
  if (threadgroup_bytes > THREADGROUP_MEMORY)
    fail("%zu bytes of threadgroup memory, Metal has %zu", threadgroup_bytes, THREADGROUP_MEMORY);
}

void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  fputc('\n', stderr);
  _exit(BAD_KERNEL);  // not exit: this may be a fiber's stack
}

}  // namespace emulator

int main(int count, char** words) { return emulator::run(count, words); }
