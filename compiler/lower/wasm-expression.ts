/**
 * Elementwise expressions as register code of the EXPRESSION kernel.
 *
 *   mul(a, sigmoid(b))   ->   r0 = load a; r1 = load b; r1 = sigmoid r1; r0 = mul r0 r1
 */
import * as abi from '../../runtime/wasm/kernels/abi.ts';
import type { ActivationName } from '../ops/activation-table.ts';
import { activations, isActivationName } from '../ops/activation-table.ts';
import type { Expression } from '../ops/fused-expression.ts';
import { Unsupported, f32 } from './wasm-context.ts';

/** A formula over inputs. */
export type Formula =
  | { readonly kind: 'input'; readonly index: number }
  | { readonly kind: 'number'; readonly value: number }
  | { readonly kind: 'call'; readonly op: string; readonly args: readonly Formula[] }
  | {
      readonly kind: 'activation';
      readonly name: ActivationName;
      readonly alpha: number;
      readonly beta: number;
      readonly of: Formula;
    };

/** Input `index`. */
export function input(index: number): Formula {
  return { kind: 'input', index };
}

/** A number. */
export function number(value: number): Formula {
  return { kind: 'number', value };
}

/** A function of the table below. */
export function call(op: string, ...args: readonly Formula[]): Formula {
  return { kind: 'call', op, args };
}

/** Number of an activation in the ABI. */
export const activationIds: Readonly<Record<ActivationName, number>> = {
  none: abi.ACT_NONE,
  relu: abi.ACT_RELU,
  relu6: abi.ACT_RELU6,
  'leaky-relu': abi.ACT_LEAKYRELU,
  clip: abi.ACT_CLIP,
  sigmoid: abi.ACT_SIGMOID,
  'hard-sigmoid': abi.ACT_HARDSIGMOID,
  'hard-swish': abi.ACT_HARDSWISH,
  silu: abi.ACT_SILU,
  gelu: abi.ACT_GELU,
  'gelu-tanh': abi.ACT_GELUTANH,
  'quick-gelu': abi.ACT_QUICKGELU,
  mish: abi.ACT_MISH,
  tanh: abi.ACT_TANH,
  softplus: abi.ACT_SOFTPLUS,
  elu: abi.ACT_ELU,
};

/** An activation of a formula. */
export function activated(
  of: Formula,
  name: ActivationName,
  alpha: number = activations[name].alpha ?? 0,
  beta: number = activations[name].beta ?? 0,
): Formula {
  if (name === 'none') return of;
  // the kernel's quick-gelu has its one published factor; another one is spelt out
  if (name === 'quick-gelu' && Math.abs(alpha - 1.702) > 1e-6)
    return call('mul', of, activated(call('mul', of, number(alpha)), 'sigmoid'));
  return { kind: 'activation', name, alpha, beta, of };
}

const instructions: Readonly<Record<string, readonly [code: number, arity: number]>> = {
  add: [abi.EX_ADD, 2],
  sub: [abi.EX_SUB, 2],
  mul: [abi.EX_MUL, 2],
  div: [abi.EX_DIV, 2],
  min: [abi.EX_MIN, 2],
  max: [abi.EX_MAX, 2],
  pow: [abi.EX_POW, 2],
  less: [abi.EX_LESS, 2],
  lessequal: [abi.EX_LESSEQUAL, 2],
  equal: [abi.EX_EQUAL, 2],
  and: [abi.EX_AND, 2],
  or: [abi.EX_OR, 2],
  where: [abi.EX_WHERE, 3],
  not: [abi.EX_NOT, 1],
  neg: [abi.EX_NEG, 1],
  abs: [abi.EX_ABS, 1],
  sqrt: [abi.EX_SQRT, 1],
  reciprocal: [abi.EX_RECIPROCAL, 1],
  exp: [abi.EX_EXP, 1],
  log: [abi.EX_LOG, 1],
  erf: [abi.EX_ERF, 1],
  floor: [abi.EX_FLOOR, 1],
  ceil: [abi.EX_CEIL, 1],
  round: [abi.EX_ROUND, 1],
  sign: [abi.EX_SIGN, 1],
  sin: [abi.EX_SIN, 1],
  cos: [abi.EX_COS, 1],
  mod: [abi.EX_MOD, 2],
  trunc: [abi.EX_TRUNC, 1],
};

/** Whether a function has an instruction. */
export function isInstruction(op: string): boolean {
  return Object.hasOwn(instructions, op);
}

/**
 * The code of a formula.
 *
 * @throws Unsupported when it needs more registers than there are
 */
export function codeOf(formula: Formula): Int32Array<ArrayBuffer> {
  const words: number[] = [];
  const free = Array.from({ length: abi.EXPRESSION_REGISTERS }, (_, index) => index).reverse();
  const take = (): number => {
    const register = free.pop();
    if (register === undefined) throw new Unsupported('an expression of too many parts');
    return register;
  };
  const compute = (part: Formula): number => {
    switch (part.kind) {
      case 'input':
      case 'number': {
        const to = take();
        const isInput = part.kind === 'input';
        const operand = isInput ? part.index : f32(part.value);
        words.push(isInput ? abi.EX_LOAD : abi.EX_CONST, to, operand, 0, 0);
        return to;
      }
      case 'activation': {
        const from = compute(part.of);
        words.push(abi.EX_ACTIVATION + activationIds[part.name], from, from);
        words.push(f32(part.alpha), f32(part.beta));
        return from;
      }
      case 'call': {
        const [code, arity] = instructions[part.op] ?? [];
        if (code === undefined || part.args.length !== arity)
          throw new Unsupported(`the function ${part.op} of ${part.args.length} values`);
        const registers = part.args.map(compute);
        const [a = 0, b = 0, c = 0] = registers;
        words.push(code, a, a, b, c);
        for (const register of registers.slice(1)) free.push(register);
        return a;
      }
    }
  };
  compute(formula);
  return Int32Array.from(words);
}

/** The formula of a fettle.Expression. */
export function formulaOf(expression: Expression): Formula {
  if (expression.kind !== 'call') return expression;
  const { name, arguments: parts } = expression;
  const [first, ...rest] = parts;
  if (isActivationName(name) && first !== undefined) {
    const [alpha, beta] = rest.map((part) => (part.kind === 'number' ? part.value : Number.NaN));
    if (Number.isNaN(alpha) || Number.isNaN(beta))
      throw new Unsupported(`${name} with constants that are computed`);
    return activated(formulaOf(first), name, alpha, beta);
  }
  return call(name, ...parts.map(formulaOf));
}
