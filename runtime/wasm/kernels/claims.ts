/**
 * How threads share the parts of a step: each has a queue of its own and, when that is empty, takes from the
 * others'. A step is over when its parts are done, whoever did them: a thread that lost its core between two
 * parts holds nobody up.
 *
 * Steps have serials that only grow, from launch to launch too. A queue is one word, i64 serial of the step << 32 | parts
 * taken, so that nothing has to be reset while a thread may look at it: one that comes late finds queues of a
 * later step and takes nothing. Between launches, when steps are patched, queues stand at the next one's first step.
 */
// --- control block; what a launch says is in interpreter.ts. Words that are written often do not share lines. ---
/** Threads that sleep or are about to. */
const SLEEPERS: usize = 24;
/** Parts done of the step that is being done. */
const DONE: usize = 64;
/** One more than the serial of the last step that is over. */
const PASSED: usize = 68;
const QUEUES: usize = 128;
/** Threads beyond that share queues. */
const MOST_QUEUES = 16;

/** Looks before sleeping: some tens of microseconds. */
const SPINS = 20000;
/** Looks before doing what is another thread's alone: some microseconds. */
const PATIENCE = 4000;

/** Queues of `threads` threads. */
@inline
export function queuesOf(threads: i32): i32 {
  return min(threads, MOST_QUEUES);
}

/** Neighbouring queues lie on different lines. */
@inline
function queueAt(control: usize, queue: i32): usize {
  return control + QUEUES + ((queue & 1) << 6) + ((queue >> 1) << 3);
}

@inline
function stateOf(serial: i32, taken: i32): i64 {
  return (<i64>serial << 32) | <i64>taken;
}

/**
 * Takes up to `count` of the `size` parts that a queue has in step `serial`.
 *
 * @returns the first one, or -1 when none is left
 */
export function claim(control: usize, queue: i32, serial: i32, size: i32, count: i32): i32 {
  const at = queueAt(control, queue);
  let seen = atomic.load<i64>(at);
  while (true) {
    const ahead = <i32>(seen >> 32) - serial;
    const first = ahead == 0 ? <i32>seen : 0;
    if (ahead > 0 || first >= size) return -1;
    const found = atomic.cmpxchg<i64>(at, seen, stateOf(serial, min(first + count, size)));
    if (found == seen) return first;
    seen = found;
  }
}

/** Counts parts done of step `serial`, which has `parts`; whoever counts the last ends the step. */
export function finishParts(control: usize, serial: i32, count: i32, parts: i32): void {
  if (atomic.add<i32>(control + DONE, count) + count < parts) return;
  atomic.store<i32>(control + DONE, 0);
  atomic.store<i32>(control + PASSED, serial + 1);
  wake(control, control + PASSED);
}

@inline
function isOver(passed: i32, serial: i32): bool {
  return passed - serial > 0;
}

/** Waits a moment for step `serial`; whether it is over. */
export function soonOver(control: usize, serial: i32): bool {
  for (let spins = 0; spins < PATIENCE; spins++) {
    if (isOver(atomic.load<i32>(control + PASSED), serial)) return true;
  }
  return false;
}

/** Waits until step `serial` is over; sleeps after a while if it may. */
export function waitForStep(control: usize, serial: i32, sleep: bool): void {
  let passed: i32;
  for (let spins = 0; !isOver((passed = atomic.load<i32>(control + PASSED)), serial); spins++) {
    if (sleep && spins >= SPINS) sleepWhile(control, control + PASSED, passed);
  }
}

/** Waits until the word at `at` is no longer `value`; sleeps after a while. */
export function waitWhile(control: usize, at: usize, value: i32): void {
  for (let spins = 0; atomic.load<i32>(at) == value; spins++) {
    if (spins >= SPINS) sleepWhile(control, at, value);
  }
}

function sleepWhile(control: usize, at: usize, value: i32): void {
  // counted before the word is looked at again, so that whoever changes it either sees the count or is seen
  atomic.add<i32>(control + SLEEPERS, 1);
  unchecked(sleeps[0])(at, value);
  atomic.sub<i32>(control + SLEEPERS, 1);
}

type Sleep = (at: usize, value: i32) => void;

/**
 * In a table so that it stays a function of its own: V8 11.3 (Node 20), until it optimizes, loses the local that
 * holds the address of a wait.
 */
const sleeps: StaticArray<Sleep> = [
  (at, value) => {
    if (ASC_FEATURE_THREADS) atomic.wait<i32>(at, value, -1);
  },
];

/** Wakes who sleeps at a word that has changed. */
export function wake(control: usize, at: usize): void {
  if (atomic.load<i32>(control + SLEEPERS) != 0) atomic.notify(at, -1);
}

/** First serial of the next launch, between launches. */
export function nextSerial(control: usize): i32 {
  return atomic.load<i32>(control + PASSED);
}

/** Ends a launch: whoever comes late finds every step of it over; `serial` is the next launch's first. */
export function closeQueues(control: usize, serial: i32, threads: i32): void {
  for (let queue = queuesOf(threads) - 1; queue >= 0; queue--) {
    atomic.store<i64>(queueAt(control, queue), stateOf(serial, 0));
  }
  atomic.store<i32>(control + PASSED, serial);
  wake(control, control + PASSED);
}
