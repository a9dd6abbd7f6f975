/**
 * The contract between the WASM kernels (AssemblyScript, this folder), the lowering (compiler/lower/)
 * and the executor (runtime/wasm/): plain integers that both languages can import. Nothing else is
 * shared. `runtime/wasm/step.ts` turns it into typed step encoders.
 *
 * Memory: absolute byte addresses in one linear memory. Bytes 0..RESERVED_BYTES belong to the kernels
 * (static data); everything above is the plan's. Tensors want 16-byte alignment; 0 means "absent".
 * All strides and sizes that say so are BYTES; counts are elements. Floats in the plan are f32 bits.
 *
 * Plan: a header of PLAN_WORDS i32 words at 16-byte alignment, whose fields are below. A step is i32
 * words: [kernel id, number of words of the step, parameters...]; `KERNEL_NAME` is the word index of
 * parameter NAME counted from the step's first word, so the first parameter is word 2.
 * A kernel's parameters are all consecutive, and `KERNEL_END` is the number of words of its step.
 *
 * Patch table: PATCH_WORDS words an entry: [byte address of the word to write, c, a, b, d], applied by
 * `patch(plan, S, P)` before a call: word = c + a*S + b*P + d*S*P.
 *
 * Exports of a kernel module: `patch(plan, S, P)`; `run(plan, from, to, thread, threads)` runs steps
 * from..to-1 and returns `to`; with `threads` > 1 every thread calls it with its own index (the
 * module's own `serve`/`launch` do that, see interpreter.ts). Results do not depend on `threads`.
 */

/** Version of everything in this file; the first word of a plan. */
export const ABI_VERSION = 4;
/** Bytes at the bottom of memory that belong to the kernels. */
export const RESERVED_BYTES = 4096;
/** Working memory of one thread, reserved by the plan at PLAN_SCRATCH for each of its threads. */
export const SCRATCH_BYTES = 16384;
/** Bytes of the control block of the thread pool, at PLAN_CONTROL, zero at the start. */
export const CONTROL_BYTES = 256;

// --- plan header, word indices ---
export const PLAN_VERSION = 0;
/** Number of steps. */
export const PLAN_STEPS = 1;
/** Address of i32[steps]: the address of each step. */
export const PLAN_TABLE = 2;
/** Number of patches, address of the patch table. */
export const PLAN_PATCHES = 3;
export const PLAN_PATCHTABLE = 4;
/** Address of SCRATCH_BYTES for each thread. */
export const PLAN_SCRATCH = 5;
/** Address of CONTROL_BYTES. */
export const PLAN_CONTROL = 6;
export const PLAN_WORDS = 8;

/** Words of a patch: address, c, a (times S), b (times P), d (times S*P). */
export const PATCH_WORDS = 5;

// --- weight formats ---
// Tile t = n >> 4 of 16 output rows, row in tile r = n & 15. B = block (16 or 32 inputs), Kp = K
// rounded up to B, blocks = Kp / B; block b = k / B, position kb = k % B. N is padded to 16 rows.
// lane(kb) = (r >> 2) * 16 + (r & 3) * 4 + (kb & 3): 16 rows x 4 inputs are 64 bytes.
//   F32, F16  [tile][k = 0..K-1][16 rows], no padding of K
// The integer formats are one stream, tile after tile: everything of a tile is read in order, which is what
// memory is fastest at. A tile is its groups, GROUPBLOCKS blocks each (the last one what is left of them):
//   scales f16 [16 rows] | zeros u8 [16 rows], unless symmetric | codes of each block:
//   W8      (kb >> 2) * 64 + lane, a byte each
//   W4, C4  (kb >> 3) * 64 + lane, bits 4*((kb >> 2) & 1)
//   W2      (kb >> 4) * 64 + lane, bits 2*((kb >> 2) & 3)
//   W3      B = 32 only: 128 bytes as W2 (low 2 bits of the code), then 64 bytes at 128 + lane, bit kb >> 2
//           (high bit). (Store w3 with groups of 16 as W4, codes doubled.)
// Codes are unsigned; value = (code - zero) * scale, of W3 and W2 (2 * code - zero) * scale: there zero points
// count half steps. Codes of padding (k >= K, n >= N) may be anything
// (write 0); scales of padding rows must be 0. ZEROS says whether there are zero points (1) or not (0): then they are
// the middle of the levels (W8 128, W4 8, W3 7, W2 3; C4 64).
//   CODEBOOK (C4): u8 [tile][16], entry + 64: entries are -64..63, so that operands have 7 bits.
// Group 16 -> BLOCK 16, GROUPBLOCKS 1; 32/64/128 -> BLOCK 32, GROUPBLOCKS 1/2/4; per channel ->
// BLOCK 32, GROUPBLOCKS = blocks. Other multiples of 16 or 32 likewise.
/** f32, 16 rows interleaved. */
export const F32 = 0;
/** f16, 16 rows interleaved. */
export const F16 = 1;
export const W8 = 2;
export const W4 = 3;
export const W3 = 4;
export const W2 = 5;
export const C4 = 6;
/** f32 or f16 [N, K] row-major: only EMBED reads these (a table that is not also a head). */
export const PLAIN32 = 7;
export const PLAIN16 = 8;

// --- element types (CONVERT, KV formats, ids) ---
export const TYPE_F32 = 0;
export const TYPE_F16 = 1;
export const TYPE_I32 = 2;
export const TYPE_I64 = 3;
/** Unsigned bytes; bool is this. */
export const TYPE_U8 = 4;
export const TYPE_I8 = 5;

// --- activations (ACTIVATION, with ALPHA and BETA where the function has constants) ---
export const ACT_NONE = 0;
export const ACT_RELU = 1;
export const ACT_RELU6 = 2;
/** x < 0 ? ALPHA*x : x */
export const ACT_LEAKYRELU = 3;
/** min(max(x, ALPHA), BETA) */
export const ACT_CLIP = 4;
export const ACT_SIGMOID = 5;
/** clip(ALPHA*x + BETA, 0, 1) */
export const ACT_HARDSIGMOID = 6;
/** x * clip(x/6 + 1/2, 0, 1) */
export const ACT_HARDSWISH = 7;
export const ACT_SILU = 8;
export const ACT_GELU = 9;
export const ACT_GELUTANH = 10;
/** x * sigmoid(1.702 x) */
export const ACT_QUICKGELU = 11;
export const ACT_MISH = 12;
export const ACT_TANH = 13;
export const ACT_SOFTPLUS = 14;
/** x < 0 ? ALPHA*(exp(x) - 1) : x */
export const ACT_ELU = 15;

// --- QUANTIZE: f32 [ROWS, K] -> quantized activations, per BLOCK inputs ---
// A row of the result is a record of rowBytes = blocks * (3*BLOCK + 16) bytes: for each block
//   [i8 codes [BLOCK] | f32 scale | i16 sums [2]], and behind all of these, for each block again
//   [i16 codes [BLOCK] (order private to the kernels) | f32 scale | i16 sums [2]]
// scale = max|x| / 127, code = round half to even(x / scale); padding is 0. The sums are minus the sums of
// codes k with k % 4 of 0 and 1, and of 2 and 3. Blocks with |x| of 8e6 and more overflow to infinity.
// FORMS says what the readers need: 1 = W4 W3 W2 C4 read it, 2 = W8 reads it, 3 = both.
export const QUANTIZE = 1;
export const QUANTIZE_X = 2;
/** Bytes between rows of X. */
export const QUANTIZE_XROW = 3;
export const QUANTIZE_Y = 4;
export const QUANTIZE_ROWS = 5;
export const QUANTIZE_K = 6;
export const QUANTIZE_BLOCK = 7;
export const QUANTIZE_FORMS = 8;
export const QUANTIZE_END = 9;

// --- LINEAR: quantized activations x integer weights ---
// y[ROWS, N] = act(x*W + BIAS) + RESIDUAL, or with W2: act(x*W + BIAS) * (x*W2 + BIAS2) + RESIDUAL.
// X are records of QUANTIZE with the same K and BLOCK (rows may be a part of them: shift X by
// rowBytes). Both matrices share FORMAT, BLOCK, GROUPBLOCKS. Y may be RESIDUAL (in place).
export const LINEAR = 2;
export const LINEAR_X = 2;
export const LINEAR_Y = 3;
/** Bytes between rows of Y, of RESIDUAL. */
export const LINEAR_YROW = 4;
export const LINEAR_ROWS = 5;
export const LINEAR_K = 6;
export const LINEAR_N = 7;
export const LINEAR_FORMAT = 8;
export const LINEAR_BLOCK = 9;
export const LINEAR_GROUPBLOCKS = 10;
export const LINEAR_W = 11;
export const LINEAR_ZEROS = 12;
export const LINEAR_CODEBOOK = 13;
/** f32 [N], or 0. */
export const LINEAR_BIAS = 14;
export const LINEAR_ACTIVATION = 15;
export const LINEAR_ALPHA = 16;
export const LINEAR_BETA = 17;
export const LINEAR_RESIDUAL = 18;
export const LINEAR_RESIDUALROW = 19;
/** The second matrix of a gated pair, or 0. */
export const LINEAR_W2 = 20;
export const LINEAR_ZEROS2 = 21;
export const LINEAR_CODEBOOK2 = 22;
export const LINEAR_BIAS2 = 23;
export const LINEAR_END = 24;

// --- DENSE: f32 activations [ROWS, K] x F32 or F16 weights, the same epilogue ---
export const DENSE = 3;
export const DENSE_X = 2;
export const DENSE_XROW = 3;
export const DENSE_Y = 4;
export const DENSE_YROW = 5;
export const DENSE_ROWS = 6;
export const DENSE_K = 7;
export const DENSE_N = 8;
export const DENSE_FORMAT = 9;
export const DENSE_W = 10;
export const DENSE_BIAS = 11;
export const DENSE_ACTIVATION = 12;
export const DENSE_ALPHA = 13;
export const DENSE_BETA = 14;
export const DENSE_RESIDUAL = 15;
export const DENSE_RESIDUALROW = 16;
export const DENSE_W2 = 17;
export const DENSE_BIAS2 = 18;
export const DENSE_END = 19;

// --- EMBED: rows of a packed table. ids [ROWS] -> y f32 [ROWS, K] * MULTIPLY ---
// Any weight format; N = rows of the table (ids outside 0..N-1 are clamped, negative ones count
// from the end). W, ZEROS, CODEBOOK, BLOCK, GROUPBLOCKS as in LINEAR, so a tied head shares them.
export const EMBED = 4;
export const EMBED_IDS = 2;
/** TYPE_I32 or TYPE_I64. */
export const EMBED_IDTYPE = 3;
export const EMBED_Y = 4;
export const EMBED_ROWS = 5;
export const EMBED_K = 6;
export const EMBED_N = 7;
export const EMBED_FORMAT = 8;
export const EMBED_BLOCK = 9;
export const EMBED_GROUPBLOCKS = 10;
export const EMBED_W = 11;
export const EMBED_ZEROS = 12;
export const EMBED_CODEBOOK = 13;
/** f32 bits; 1.0 for none. */
export const EMBED_MULTIPLY = 14;
export const EMBED_END = 15;

// --- NORM: t = x (+ SKIP + SKIPBIAS); y = norm(t) * GAIN + BIAS over N; SUM receives t ---
// ROWS x HEADS rows of N: row (i, h) of X is at X + i*XROW + h*N*4, of Y at Y + i*YROW + h*N*4 (HEADS 1
// for a plain norm; more for q/k norm inside packed rows, where GAIN [N] is shared). SKIP and SUM are
// laid out as X. Y or SUM may be X or SKIP.
export const NORM = 5;
export const NORM_X = 2;
export const NORM_XROW = 3;
export const NORM_Y = 4;
export const NORM_YROW = 5;
export const NORM_ROWS = 6;
export const NORM_HEADS = 7;
export const NORM_N = 8;
/** 0 RMS, 1 layer. */
export const NORM_KIND = 9;
export const NORM_EPSILON = 10;
export const NORM_GAIN = 11;
export const NORM_BIAS = 12;
export const NORM_SKIP = 13;
export const NORM_SKIPBIAS = 14;
export const NORM_SUM = 15;
export const NORM_END = 16;

// --- ROTARY: rotates HEADS heads of SIZE in each of ROWS rows; X may be Y ---
// COS, SIN: f32 [positions, DIMS/2]. Position of row i: POSITIONS[i], or PAST + i % SEQUENCE when
// POSITIONS is 0. Positions are clamped to 0..TABLEROWS-1. Dimensions DIMS..SIZE-1 are copied.
export const ROTARY = 6;
export const ROTARY_X = 2;
export const ROTARY_XROW = 3;
export const ROTARY_Y = 4;
export const ROTARY_YROW = 5;
export const ROTARY_ROWS = 6;
export const ROTARY_HEADS = 7;
export const ROTARY_SIZE = 8;
export const ROTARY_DIMS = 9;
/** 0: pairs (i, i + DIMS/2); 1: pairs (2i, 2i+1). */
export const ROTARY_INTERLEAVED = 10;
export const ROTARY_COS = 11;
export const ROTARY_SIN = 12;
export const ROTARY_TABLEROWS = 13;
export const ROTARY_POSITIONS = 14;
export const ROTARY_POSITIONTYPE = 15;
export const ROTARY_PAST = 16;
export const ROTARY_SEQUENCE = 17;
export const ROTARY_END = 18;

// --- APPEND: f32 rows into KV state (or any per-head layout), converting to TYPE ---
// for b, t, h: Y + b*YBATCH + h*YHEAD + (POSITION + t)*YTOKEN receives the SIZE values at
// X + b*XBATCH + t*XTOKEN + h*SIZE*4. TYPE_F32 or TYPE_F16 (round to nearest even, clamped to +-65504).
export const APPEND = 7;
export const APPEND_X = 2;
export const APPEND_XTOKEN = 3;
export const APPEND_XBATCH = 4;
export const APPEND_Y = 5;
export const APPEND_YTOKEN = 6;
export const APPEND_YHEAD = 7;
export const APPEND_YBATCH = 8;
export const APPEND_BATCH = 9;
export const APPEND_TOKENS = 10;
export const APPEND_HEADS = 11;
export const APPEND_SIZE = 12;
export const APPEND_TYPE = 13;
export const APPEND_POSITION = 14;
export const APPEND_END = 15;

// --- ATTENTION: softmax(q k^T * SCALE ...) v, online, GQA; reads keys and values wherever they are ---
// Query (b, i, h): SIZE f32 at Q + b*QBATCH + i*QTOKEN + h*SIZE*4. Key (b, t, g): SIZE values of KVTYPE at
// K + b*KBATCH + g*KHEAD + t*KTOKEN, values (VSIZE of them) likewise; g = h / (HEADS / KVHEADS).
// Result (b, i, h): VSIZE f32 at Y + b*YBATCH + i*YTOKEN + h*VSIZE*4. Append new keys before this step.
// SIZE and VSIZE are multiples of 4, at most 256. Query i sits at key position PAST + i;
// CAUSAL hides t > PAST + i; WINDOW w > 0 hides t <= PAST + i - w (and without CAUSAL also t >= PAST + i + w).
// MASK: integers of MASKTYPE [BATCH, KEYS], rows MASKROW bytes apart, 0 = hidden.
// BIAS: f32 added after scaling (and softcap); strides in bytes, 0 = broadcast, keys contiguous.
// SINKS: f32 [HEADS], a logit without a value. A query with no visible key yields 0.
export const ATTENTION = 8;
export const ATTENTION_Q = 2;
export const ATTENTION_QTOKEN = 3;
export const ATTENTION_QBATCH = 4;
export const ATTENTION_K = 5;
export const ATTENTION_KTOKEN = 6;
export const ATTENTION_KHEAD = 7;
export const ATTENTION_KBATCH = 8;
export const ATTENTION_V = 9;
export const ATTENTION_VTOKEN = 10;
export const ATTENTION_VHEAD = 11;
export const ATTENTION_VBATCH = 12;
export const ATTENTION_KVTYPE = 13;
export const ATTENTION_Y = 14;
export const ATTENTION_YTOKEN = 15;
export const ATTENTION_YBATCH = 16;
export const ATTENTION_BATCH = 17;
export const ATTENTION_QUERIES = 18;
export const ATTENTION_KEYS = 19;
export const ATTENTION_HEADS = 20;
export const ATTENTION_KVHEADS = 21;
export const ATTENTION_SIZE = 22;
export const ATTENTION_VSIZE = 23;
export const ATTENTION_SCALE = 24;
export const ATTENTION_CAUSAL = 25;
export const ATTENTION_PAST = 26;
export const ATTENTION_WINDOW = 27;
/** f32 bits; 0 = none. */
export const ATTENTION_SOFTCAP = 28;
export const ATTENTION_MASK = 29;
export const ATTENTION_MASKTYPE = 30;
export const ATTENTION_MASKROW = 31;
export const ATTENTION_BIAS = 32;
export const ATTENTION_BIASBATCH = 33;
export const ATTENTION_BIASHEAD = 34;
export const ATTENTION_BIASQUERY = 35;
export const ATTENTION_SINKS = 36;
export const ATTENTION_END = 37;

/** One more than the largest kernel id. */
export const KERNEL_COUNT = 28;

// EXPRESSION, REDUCE, SOFTMAX, MOVE, FILL, GATHER, ARGMAX, TOPK, CONVERT, MATMUL, CONV, POOL
export * from './abi-tensors.ts';

// UNPACK, RECURRENT, COLUMNS, RESAMPLE, CUMULATE, ELEMENTS, POINTS
export * from './abi-layers.ts';
