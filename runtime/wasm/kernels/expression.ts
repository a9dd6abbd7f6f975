/**
 * EXPRESSION: elementwise register code. A chunk of 256 elements goes through all instructions before the
 * next, in registers of 1 KiB in the thread's scratch, so that dispatch costs little and memory is
 * touched once. Inputs broadcast by strides.
 */
import {
  EXPRESSION_CODE,
  EXPRESSION_CODELENGTH,
  EXPRESSION_D0,
  EXPRESSION_D5,
  EXPRESSION_FIRST,
  EXPRESSION_INPUTWORDS,
  EXPRESSION_INSTRUCTIONWORDS,
  EXPRESSION_Y,
  EX_ABS,
  EX_ACTIVATION,
  EX_ADD,
  EX_AND,
  EX_CEIL,
  EX_CONST,
  EX_COS,
  EX_DIV,
  EX_EQUAL,
  EX_ERF,
  EX_EXP,
  EX_FLOOR,
  EX_LESS,
  EX_LESSEQUAL,
  EX_LOAD,
  EX_LOG,
  EX_MAX,
  EX_MIN,
  EX_MOD,
  EX_MUL,
  EX_NEG,
  EX_NOT,
  EX_OR,
  EX_POW,
  EX_RECIPROCAL,
  EX_ROUND,
  EX_SIGN,
  EX_SIN,
  EX_SQRT,
  EX_SUB,
  EX_TRUNC,
  EX_WHERE,
} from './abi.ts';
import { address, float, shareStart, word } from './core.ts';
import { activate, erf, exp, log, sine } from './math.ts';

/** Elements a chunk; a register is four bytes of each. */
const CHUNK = 256;
const REGISTER_SHIFT = 10;

export function expression(step: usize, scratch: usize, thread: i32, threads: i32): void {
  const inner = word(step, EXPRESSION_D5);
  const chunks = (inner + CHUNK - 1) / CHUNK;
  let rows = 1;
  for (let d = EXPRESSION_D0; d < EXPRESSION_D5; d++) rows *= word(step, d);
  const items = rows * chunks;
  const end = shareStart(items, thread + 1, threads);
  for (let i = shareStart(items, thread, threads); i < end; i++) {
    const row = i / chunks;
    const start = (i - row * chunks) * CHUNK;
    const count = min(CHUNK, inner - start);
    const last = runChunk(step, scratch, row, start, count);
    const y = address(step, EXPRESSION_Y) + ((row * inner + start) << 2);
    memory.copy(y, scratch + (last << REGISTER_SHIFT), count << 2);
  }
}

/** Runs the code on elements start..start+count-1 of an innermost row; returns the result's register. */
function runChunk(step: usize, scratch: usize, row: i32, start: i32, count: i32): i32 {
  let code = address(step, EXPRESSION_CODE);
  let target = 0;
  for (let n = word(step, EXPRESSION_CODELENGTH); n > 0; n--) {
    const op = word(code, 0);
    target = word(code, 1);
    const y = scratch + (target << REGISTER_SHIFT);
    if (op == EX_LOAD) {
      const input = step + ((EXPRESSION_FIRST + word(code, 2) * EXPRESSION_INPUTWORDS) << 2);
      loadInput(step, input, row, start, count, y);
    } else if (op == EX_CONST) {
      fillRow(y, f32x4.splat(float(code, 2)), count);
    } else if (op >= EX_ACTIVATION) {
      const alpha = f32x4.splat(float(code, 3));
      const beta = f32x4.splat(float(code, 4));
      const a = scratch + (word(code, 2) << REGISTER_SHIFT);
      for (let i = 0; i < count << 2; i += 16) {
        v128.store(y + i, activate(op - EX_ACTIVATION, v128.load(a + i), alpha, beta));
      }
    } else {
      const a = scratch + (word(code, 2) << REGISTER_SHIFT);
      const b = scratch + (word(code, 3) << REGISTER_SHIFT);
      const c = scratch + (word(code, 4) << REGISTER_SHIFT);
      if (!common(op, y, a, b, count)) {
        for (let i = 0; i < count << 2; i += 16) {
          v128.store(y + i, apply(op, v128.load(a + i), v128.load(b + i), v128.load(c + i)));
        }
      }
    }
    code += EXPRESSION_INSTRUCTIONWORDS << 2;
  }
  return target;
}

function fillRow(y: usize, value: v128, count: i32): void {
  for (let i = 0; i < count << 2; i += 16) v128.store(y + i, value);
}

/** Copies or broadcasts a chunk of an input into a register. */
function loadInput(step: usize, input: usize, row: i32, start: i32, count: i32, y: usize): void {
  let offset = 0;
  for (let d = 4; d >= 0; d--) {
    const size = word(step, EXPRESSION_D0 + d);
    const next = row / size;
    offset += (row - next * size) * word(input, 1 + d);
    row = next;
  }
  const stride = word(input, 6);
  const x = address(input, 0) + ((offset + start * stride) << 2);
  if (stride == 1) {
    memory.copy(y, x, count << 2);
  } else if (stride == 0) {
    fillRow(y, v128.load32_splat(x), count);
  } else {
    for (let i = 0; i < count; i++) store<f32>(y + (i << 2), load<f32>(x + ((i * stride) << 2)));
  }
}

/** The four operations with loops of their own; false for any other. */
function common(op: i32, y: usize, a: usize, b: usize, count: i32): bool {
  const end = y + (count << 2);
  if (op == EX_ADD) {
    for (; y < end; y += 16, a += 16, b += 16) v128.store(y, f32x4.add(v128.load(a), v128.load(b)));
  } else if (op == EX_SUB) {
    for (; y < end; y += 16, a += 16, b += 16) v128.store(y, f32x4.sub(v128.load(a), v128.load(b)));
  } else if (op == EX_MUL) {
    for (; y < end; y += 16, a += 16, b += 16) v128.store(y, f32x4.mul(v128.load(a), v128.load(b)));
  } else if (op == EX_DIV) {
    for (; y < end; y += 16, a += 16, b += 16) v128.store(y, f32x4.div(v128.load(a), v128.load(b)));
  } else return false;
  return true;
}

/** 1 where a lane of `mask` is set. */
@inline
function truth(mask: v128): v128 {
  return v128.and(mask, f32x4.splat(1));
}

@inline
function isTrue(x: v128): v128 {
  return f32x4.ne(x, f32x4.splat(0));
}

function apply(op: i32, a: v128, b: v128, c: v128): v128 {
  switch (op) {
    case EX_MIN:
      return f32x4.min(a, b);
    case EX_MAX:
      return f32x4.max(a, b);
    case EX_POW:
      return power(a, b);
    case EX_LESS:
      return truth(f32x4.lt(a, b));
    case EX_LESSEQUAL:
      return truth(f32x4.le(a, b));
    case EX_EQUAL:
      return truth(f32x4.eq(a, b));
    case EX_AND:
      return truth(v128.and(isTrue(a), isTrue(b)));
    case EX_OR:
      return truth(v128.or(isTrue(a), isTrue(b)));
    case EX_WHERE:
      return v128.bitselect(b, c, isTrue(a));
    case EX_NOT:
      return truth(v128.not(isTrue(a)));
    case EX_NEG:
      return f32x4.neg(a);
    case EX_ABS:
      return f32x4.abs(a);
    case EX_SQRT:
      return f32x4.sqrt(a);
    case EX_RECIPROCAL:
      return f32x4.div(f32x4.splat(1), a);
    case EX_EXP:
      return exp(a);
    case EX_LOG:
      return log(a);
    case EX_ERF:
      return erf(a);
    case EX_FLOOR:
      return f32x4.floor(a);
    case EX_CEIL:
      return f32x4.ceil(a);
    case EX_ROUND:
      return f32x4.nearest(a);
    case EX_TRUNC:
      return f32x4.trunc(a);
    case EX_SIGN: {
      const zero = f32x4.splat(0);
      const positive = truth(f32x4.gt(a, zero));
      return v128.bitselect(a, f32x4.sub(positive, truth(f32x4.lt(a, zero))), f32x4.ne(a, a));
    }
    case EX_SIN:
      return sine(a, 0);
    case EX_COS:
      return sine(a, 1);
    case EX_MOD:
      return f32x4.sub(a, f32x4.mul(f32x4.trunc(f32x4.div(a, b)), b));
    default:
      unreachable();
      return a;
  }
}

/** a^b: exact for b of 2, 1/2, 1, 0, -1; of negative a for whole b; else e^(b log a), 1e-5 relative. */
function power(a: v128, b: v128): v128 {
  if (same(b, 2)) return f32x4.mul(a, a);
  if (same(b, 0.5)) return f32x4.sqrt(a);
  if (same(b, 1)) return a;
  if (same(b, 3)) return f32x4.mul(f32x4.mul(a, a), a);
  if (same(b, -1)) return f32x4.div(f32x4.splat(1), a);
  const magnitude = exp(f32x4.mul(b, log(f32x4.abs(a))));
  const whole = f32x4.eq(f32x4.trunc(b), b);
  const halfB = f32x4.mul(b, f32x4.splat(0.5));
  const odd = v128.andnot(whole, f32x4.eq(f32x4.trunc(halfB), halfB));
  const negative = f32x4.lt(a, f32x4.splat(0));
  const flipped = v128.xor(magnitude, v128.and(v128.and(negative, odd), f32x4.splat(-0.0)));
  const valid = v128.bitselect(flipped, f32x4.splat(NaN), v128.or(whole, v128.not(negative)));
  return v128.bitselect(f32x4.splat(1), valid, f32x4.eq(b, f32x4.splat(0)));
}

@inline
function same(b: v128, value: f32): bool {
  return i32x4.all_true(f32x4.eq(b, f32x4.splat(value)));
}
