/**
 * The second half of the kernel contract (see abi.ts, which re-exports it): general tensor kernels.
 */

// --- EXPRESSION: elementwise register code over broadcast f32 inputs ---
// Output: contiguous f32 of dims D0..D5 (pad in front with 1; merge dims where you can: D5 is the
// vector loop). Input j: EXPRESSION_INPUTS words each, from word EXPRESSION_FIRST + j*EXPRESSION_INPUTWORDS:
// [address, element stride of D0..D5 (0 = broadcast)]; so the step has FIRST + INPUTS*INPUTWORDS words.
// CODE: address of CODELENGTH instructions of 5 words [op, dst, a, b, c] over registers
// 0..EXPRESSION_REGISTERS-1. EX_LOAD: dst = input a; EX_CONST: dst = f32 bits in a; the result is the
// dst of the last instruction. Booleans are 0 and 1.
export const EXPRESSION = 9;
export const EXPRESSION_Y = 2;
export const EXPRESSION_CODE = 3;
export const EXPRESSION_CODELENGTH = 4;
export const EXPRESSION_INPUTS = 5;
export const EXPRESSION_D0 = 6;
export const EXPRESSION_D1 = 7;
export const EXPRESSION_D2 = 8;
export const EXPRESSION_D3 = 9;
export const EXPRESSION_D4 = 10;
export const EXPRESSION_D5 = 11;
export const EXPRESSION_FIRST = 12;
export const EXPRESSION_INPUTWORDS = 7;
export const EXPRESSION_REGISTERS = 14;
export const EXPRESSION_INSTRUCTIONWORDS = 5;

export const EX_LOAD = 0;
export const EX_CONST = 1;
export const EX_ADD = 2;
export const EX_SUB = 3;
export const EX_MUL = 4;
export const EX_DIV = 5;
/** NaN if either is, as ONNX Min and Max. */
export const EX_MIN = 6;
export const EX_MAX = 7;
export const EX_POW = 8;
export const EX_LESS = 9;
export const EX_LESSEQUAL = 10;
export const EX_EQUAL = 11;
export const EX_AND = 12;
export const EX_OR = 13;
/** a != 0 ? b : c */
export const EX_WHERE = 14;
export const EX_NOT = 15;
export const EX_NEG = 16;
export const EX_ABS = 17;
export const EX_SQRT = 18;
export const EX_RECIPROCAL = 19;
export const EX_EXP = 20;
export const EX_LOG = 21;
export const EX_ERF = 22;
export const EX_FLOOR = 23;
export const EX_CEIL = 24;
/** Half to even. */
export const EX_ROUND = 25;
export const EX_SIGN = 26;
export const EX_SIN = 27;
export const EX_COS = 28;
/** Truncated remainder (fmod). */
export const EX_MOD = 29;
export const EX_TRUNC = 30;
/** dst = activation number (op - EX_ACTIVATION) of a; b and c are the f32 bits of ALPHA and BETA. */
export const EX_ACTIVATION = 64;

// --- REDUCE: [OUTER, LENGTH, INNER] -> [OUTER, INNER], f32 ---
export const REDUCE = 10;
export const REDUCE_X = 2;
export const REDUCE_Y = 3;
export const REDUCE_OUTER = 4;
export const REDUCE_LENGTH = 5;
export const REDUCE_INNER = 6;
export const REDUCE_KIND = 7;
export const REDUCE_END = 8;
export const REDUCE_SUM = 0;
export const REDUCE_MEAN = 1;
export const REDUCE_MAX = 2;
export const REDUCE_MIN = 3;
export const REDUCE_PROD = 4;
export const REDUCE_L1 = 5;
export const REDUCE_L2 = 6;
export const REDUCE_SUMSQUARE = 7;

// --- SOFTMAX over LENGTH of [OUTER, LENGTH, INNER], f32; X may be Y ---
export const SOFTMAX = 11;
export const SOFTMAX_X = 2;
export const SOFTMAX_Y = 3;
export const SOFTMAX_OUTER = 4;
export const SOFTMAX_LENGTH = 5;
export const SOFTMAX_INNER = 6;
/** 1 for LogSoftmax. */
export const SOFTMAX_LOG = 7;
export const SOFTMAX_END = 8;

// --- MOVE: strided copy of D0 x ... x D5 elements of ELEMENT bytes (1, 2, 4 or 8) ---
// Transpose, slice, expand, reverse, a part of a concat, the inside of a pad. Strides in bytes, X strides
// may be 0 or negative. Merge dims where you can; pad in front with 1.
export const MOVE = 12;
export const MOVE_X = 2;
export const MOVE_Y = 3;
export const MOVE_ELEMENT = 4;
export const MOVE_D0 = 5;
export const MOVE_D1 = 6;
export const MOVE_D2 = 7;
export const MOVE_D3 = 8;
export const MOVE_D4 = 9;
export const MOVE_D5 = 10;
export const MOVE_XSTRIDE0 = 11;
export const MOVE_XSTRIDE1 = 12;
export const MOVE_XSTRIDE2 = 13;
export const MOVE_XSTRIDE3 = 14;
export const MOVE_XSTRIDE4 = 15;
export const MOVE_XSTRIDE5 = 16;
export const MOVE_YSTRIDE0 = 17;
export const MOVE_YSTRIDE1 = 18;
export const MOVE_YSTRIDE2 = 19;
export const MOVE_YSTRIDE3 = 20;
export const MOVE_YSTRIDE4 = 21;
export const MOVE_YSTRIDE5 = 22;
export const MOVE_END = 23;

// --- FILL: COUNT elements of ELEMENT bytes with the low bytes of VALUE (and HIGH for 8 bytes) ---
export const FILL = 13;
export const FILL_Y = 2;
export const FILL_COUNT = 3;
export const FILL_ELEMENT = 4;
export const FILL_VALUE = 5;
export const FILL_HIGH = 6;
export const FILL_END = 7;

// --- GATHER: x [OUTER, LENGTH, INNER bytes], ids [COUNT] -> y [OUTER, COUNT, INNER bytes] ---
// Negative ids count from the end; ids outside are clamped.
export const GATHER = 14;
export const GATHER_X = 2;
export const GATHER_IDS = 3;
export const GATHER_IDTYPE = 4;
export const GATHER_Y = 5;
export const GATHER_OUTER = 6;
export const GATHER_LENGTH = 7;
/** Bytes. */
export const GATHER_INNER = 8;
export const GATHER_COUNT = 9;
export const GATHER_END = 10;

// --- ARGMAX: first index of the largest over LENGTH of f32 [OUTER, LENGTH, INNER] -> [OUTER, INNER] ---
export const ARGMAX = 15;
export const ARGMAX_X = 2;
export const ARGMAX_Y = 3;
/** TYPE_I32 or TYPE_I64. */
export const ARGMAX_YTYPE = 4;
export const ARGMAX_OUTER = 5;
export const ARGMAX_LENGTH = 6;
export const ARGMAX_INNER = 7;
/** 1: the smallest (ArgMin). */
export const ARGMAX_SMALLEST = 8;
/** 1: the last index of equals. */
export const ARGMAX_LAST = 9;
export const ARGMAX_END = 10;

// --- TOPK: the K largest (or smallest) of each row of f32 [ROWS, N], sorted, ties by lower index ---
export const TOPK = 16;
export const TOPK_X = 2;
export const TOPK_ROWS = 3;
export const TOPK_N = 4;
export const TOPK_K = 5;
/** f32 [ROWS, K] */
export const TOPK_VALUES = 6;
/** [ROWS, K] of TOPK_INDEXTYPE */
export const TOPK_INDICES = 7;
export const TOPK_INDEXTYPE = 8;
export const TOPK_SMALLEST = 9;
export const TOPK_END = 10;

// --- CONVERT: COUNT elements FROM one TYPE_* TO another ---
// f32 -> integer truncates and saturates; integer -> narrower integer wraps; anything -> U8 of a bool is
// the caller's business (use EX_NOT twice first).
export const CONVERT = 17;
export const CONVERT_X = 2;
export const CONVERT_Y = 3;
export const CONVERT_COUNT = 4;
export const CONVERT_FROM = 5;
export const CONVERT_TO = 6;
export const CONVERT_END = 7;

// --- MATMUL: y[b,h] [M, N] = x[b,h] [M, K] * w[b,h], both f32 activations, times SCALE ---
// w is [K, N] (TRANSPOSED 0, rows WROW bytes apart) or [N, K] (TRANSPOSED 1). Batch of BATCH x HEADS with
// byte strides per operand (0 broadcasts). Last dims are contiguous.
export const MATMUL = 18;
export const MATMUL_X = 2;
export const MATMUL_XROW = 3;
export const MATMUL_XBATCH = 4;
export const MATMUL_XHEAD = 5;
export const MATMUL_W = 6;
export const MATMUL_WROW = 7;
export const MATMUL_WBATCH = 8;
export const MATMUL_WHEAD = 9;
export const MATMUL_TRANSPOSED = 10;
export const MATMUL_Y = 11;
export const MATMUL_YROW = 12;
export const MATMUL_YBATCH = 13;
export const MATMUL_YHEAD = 14;
export const MATMUL_BATCH = 15;
export const MATMUL_HEADS = 16;
export const MATMUL_M = 17;
export const MATMUL_K = 18;
export const MATMUL_N = 19;
/** f32 bits; 1.0 for none. */
export const MATMUL_SCALE = 20;
export const MATMUL_END = 21;

// --- CONV: NCHW convolution in f32 (1-D: height 1). W: [COUT, CIN/GROUPS, KH, KW] row-major ---
// y = act(conv + BIAS) + RESIDUAL, or RESIDUALFIRST: act(conv + BIAS + RESIDUAL). RESIDUAL as Y.
// PANEL: working memory of PANELBYTES for each of the plan's threads, one after another: K * 4 bytes for each of 8
// to 64 output positions, a multiple of 8 (K = CIN/GROUPS * KH * KW). Depthwise (GROUPS = CIN = COUT):
// ((KW + 3) & ~3) * 4 bytes, and R rows of run * STRIDEW * 4 bytes, run = ((WOUT + 3) & ~3) +
// (((KW - 1) * DILATIONW / STRIDEW + 4) & ~3), R = min(HIN, (min(DEPTHWISE_BAND, HOUT) - 1) * STRIDEH +
// (KH - 1) * DILATIONH + 1).
export const CONV = 19;
export const CONV_X = 2;
export const CONV_Y = 3;
export const CONV_BATCH = 4;
export const CONV_CIN = 5;
export const CONV_HIN = 6;
export const CONV_WIN = 7;
export const CONV_COUT = 8;
export const CONV_HOUT = 9;
export const CONV_WOUT = 10;
export const CONV_KH = 11;
export const CONV_KW = 12;
export const CONV_STRIDEH = 13;
export const CONV_STRIDEW = 14;
export const CONV_DILATIONH = 15;
export const CONV_DILATIONW = 16;
export const CONV_PADTOP = 17;
export const CONV_PADLEFT = 18;
export const CONV_GROUPS = 19;
export const CONV_W = 20;
export const CONV_BIAS = 21;
export const CONV_ACTIVATION = 22;
export const CONV_ALPHA = 23;
export const CONV_BETA = 24;
export const CONV_RESIDUAL = 25;
export const CONV_RESIDUALFIRST = 26;
export const CONV_PANEL = 27;
export const CONV_PANELBYTES = 28;
/** Output rows of a plane that a depthwise convolution computes at a time. */
export const DEPTHWISE_BAND = 16;
export const CONV_END = 29;

// --- POOL: max or average over windows of f32 [PLANES, HIN, WIN] ---
export const POOL = 20;
export const POOL_X = 2;
export const POOL_Y = 3;
/** Batch times channels. */
export const POOL_PLANES = 4;
export const POOL_HIN = 5;
export const POOL_WIN = 6;
export const POOL_HOUT = 7;
export const POOL_WOUT = 8;
export const POOL_KH = 9;
export const POOL_KW = 10;
export const POOL_STRIDEH = 11;
export const POOL_STRIDEW = 12;
export const POOL_DILATIONH = 13;
export const POOL_DILATIONW = 14;
export const POOL_PADTOP = 15;
export const POOL_PADLEFT = 16;
/** 0 max, 1 average over what is inside, 2 average counting padding (PADBOTTOM, PADRIGHT bound it). */
export const POOL_KIND = 17;
export const POOL_PADBOTTOM = 18;
export const POOL_PADRIGHT = 19;
export const POOL_END = 20;
