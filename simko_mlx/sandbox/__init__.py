"""Runs programs that a model wrote, where they can do no harm: docs/sandbox.md.

The pieces, from the inside out: ``values`` (plain data on its way in and out), ``child`` (what
runs inside, before and around the program), ``seccomp`` and ``limits`` (what the program may do,
and how much), ``linux`` and ``macos`` (how a sandbox is started, checked and ended), ``backend``
(which of the two, or why none), ``run`` (one program from start to end), ``probe`` (does it hold?).

Nothing in here knows what a right answer is: expected values never come near the program.
"""
