/**
 * The third part of the kernel contract (see abi.ts, which re-exports it): weights that are unpacked when a
 * plan is loaded, recurrent layers, and indexing and resampling of tensors.
 */

// --- UNPACK: codes in few bits -> f32, once, when a plan is loaded ---
// CODES: rows of packed codes as compiler/quant/pack.ts writes them: a little-endian bit stream a row, whole
// bytes. SCALES f16 [ROWS, groups], groups = ceil(COLUMNS / GROUP); ZEROS packed like codes [ROWS, groups]
// or 0 (2^(BITS-1)); CODEBOOK i8 [C, 16] or 0, each for ROWS / C rows. Value (row, column) goes to
// Y + row*YROW + column*YCOLUMN bytes.
export const UNPACK = 21;
export const UNPACK_CODES = 2;
export const UNPACK_SCALES = 3;
export const UNPACK_ZEROS = 4;
export const UNPACK_CODEBOOK = 5;
/** Rows of each codebook. */
export const UNPACK_BOOKROWS = 6;
export const UNPACK_Y = 7;
export const UNPACK_YROW = 8;
export const UNPACK_YCOLUMN = 9;
export const UNPACK_ROWS = 10;
export const UNPACK_COLUMNS = 11;
export const UNPACK_BITS = 12;
export const UNPACK_GROUP = 13;
export const UNPACK_END = 14;

// --- RECURRENT: LSTM, GRU, RNN over input projections that are already computed ---
// X: f32 projections with their biases, G*HIDDEN for step t, batch b, direction d at
// X + t*XSTEP + b*XBATCH + d*G*HIDDEN*4, G = 1 (RNN), 3 (GRU: z r h), 4 (LSTM: i o f c).
// R: f32 [DIRECTIONS, G*HIDDEN, HIDDEN]. RBIAS: f32 [DIRECTIONS, HIDDEN] or 0: the candidate's recurrent bias
// of a GRU with LINEARBEFORE. H0, C0, PEEPHOLE: f32 [DIRECTIONS, BATCH, HIDDEN] twice, [DIRECTIONS, 3*HIDDEN],
// or 0. LENGTHS: i32 [BATCH] or 0.
// Y: state of step t, direction d, batch b at Y + t*YSTEP + d*YDIRECTION + b*YBATCH (steps past a length are
// 0); 0 = not kept. H, C: last states, (d, b) at H + d*SDIRECTION + b*SBATCH; both are worked in, so they are
// given even when nobody reads them (C only by an LSTM).
// ACTIVATIONS: i32 [DIRECTIONS, 3, 3]: activation, f32 bits of ALPHA, of BETA, for gates f, g, h.
// GATES: working memory of 2*G*HIDDEN*4 bytes for each of the plan's threads. Split by direction and batch.
export const RECURRENT = 22;
export const RECURRENT_KIND = 2;
export const RECURRENT_X = 3;
export const RECURRENT_XSTEP = 4;
export const RECURRENT_XBATCH = 5;
export const RECURRENT_R = 6;
export const RECURRENT_RBIAS = 7;
export const RECURRENT_H0 = 8;
export const RECURRENT_C0 = 9;
export const RECURRENT_SDIRECTION = 10;
export const RECURRENT_SBATCH = 11;
export const RECURRENT_PEEPHOLE = 12;
export const RECURRENT_LENGTHS = 13;
export const RECURRENT_Y = 14;
export const RECURRENT_YSTEP = 15;
export const RECURRENT_YDIRECTION = 16;
export const RECURRENT_YBATCH = 17;
export const RECURRENT_H = 18;
export const RECURRENT_C = 19;
export const RECURRENT_STEPS = 20;
export const RECURRENT_BATCH = 21;
export const RECURRENT_DIRECTIONS = 22;
export const RECURRENT_HIDDEN = 23;
/** 0: all directions forward, 1: all reverse, 2: the second one reverse. */
export const RECURRENT_REVERSE = 24;
export const RECURRENT_ACTIVATIONS = 25;
/** f32 bits; 0 = none. */
export const RECURRENT_CLIP = 26;
export const RECURRENT_LINEARBEFORE = 27;
export const RECURRENT_INPUTFORGET = 28;
export const RECURRENT_GATES = 29;
export const RECURRENT_END = 30;

// --- COLUMNS: sums of window contents, the second half of a transposed convolution ---
// X: f32 [BATCH, COUT, KH, KW, HIN, WIN] -> Y f32 [BATCH, COUT, HOUT, WOUT], (ky, kx) of input (i, j) added at
// (i*STRIDEH + ky*DILATIONH - PADTOP, j*STRIDEW + kx*DILATIONW - PADLEFT); + BIAS [COUT], then activation.
export const COLUMNS = 23;
export const COLUMNS_X = 2;
export const COLUMNS_Y = 3;
export const COLUMNS_BATCH = 4;
export const COLUMNS_COUT = 5;
export const COLUMNS_HIN = 6;
export const COLUMNS_WIN = 7;
export const COLUMNS_HOUT = 8;
export const COLUMNS_WOUT = 9;
export const COLUMNS_KH = 10;
export const COLUMNS_KW = 11;
export const COLUMNS_STRIDEH = 12;
export const COLUMNS_STRIDEW = 13;
export const COLUMNS_DILATIONH = 14;
export const COLUMNS_DILATIONW = 15;
export const COLUMNS_PADTOP = 16;
export const COLUMNS_PADLEFT = 17;
export const COLUMNS_BIAS = 18;
export const COLUMNS_END = 19;

// --- RESAMPLE: one axis as weighted sums of its elements; f32 [OUTER, LENGTH, INNER] -> [OUTER, COUNT, INNER] ---
// TABLE: [COUNT][TAPS] pairs (i32 element, or -1 for the number FILL; f32 weight).
export const RESAMPLE = 24;
export const RESAMPLE_X = 2;
export const RESAMPLE_Y = 3;
export const RESAMPLE_OUTER = 4;
export const RESAMPLE_LENGTH = 5;
export const RESAMPLE_INNER = 6;
export const RESAMPLE_COUNT = 7;
export const RESAMPLE_TAPS = 8;
export const RESAMPLE_TABLE = 9;
export const RESAMPLE_FILL = 10;
export const RESAMPLE_END = 11;

// --- CUMULATE: running sums along an axis; f32 [OUTER, LENGTH, INNER] ---
export const CUMULATE = 25;
export const CUMULATE_X = 2;
export const CUMULATE_Y = 3;
export const CUMULATE_OUTER = 4;
export const CUMULATE_LENGTH = 5;
export const CUMULATE_INNER = 6;
export const CUMULATE_EXCLUSIVE = 7;
export const CUMULATE_REVERSE = 8;
export const CUMULATE_END = 9;

// --- ELEMENTS: GatherElements and ScatterElements of 4-byte elements ---
// For each position p of dims D0..D5 (the shape of IDS, i32, row-major): id = IDS[p], negative from the end of
// SIZE, clamped; the element at DATA + (sum of p_d * STRIDE_d + id * AXISSTRIDE) * 4.
// MODE 0: VALUES[p] = it. 1 set, 2 add, 3 multiply, 4 max, 5 min: it = it (op) VALUES[p], one after the
// other on one thread (f32, but for set).
export const ELEMENTS = 26;
export const ELEMENTS_MODE = 2;
export const ELEMENTS_DATA = 3;
export const ELEMENTS_IDS = 4;
export const ELEMENTS_VALUES = 5;
export const ELEMENTS_SIZE = 6;
export const ELEMENTS_AXISSTRIDE = 7;
export const ELEMENTS_D0 = 8;
export const ELEMENTS_D1 = 9;
export const ELEMENTS_D2 = 10;
export const ELEMENTS_D3 = 11;
export const ELEMENTS_D4 = 12;
export const ELEMENTS_D5 = 13;
export const ELEMENTS_STRIDE0 = 14;
export const ELEMENTS_STRIDE1 = 15;
export const ELEMENTS_STRIDE2 = 16;
export const ELEMENTS_STRIDE3 = 17;
export const ELEMENTS_STRIDE4 = 18;
export const ELEMENTS_STRIDE5 = 19;
export const ELEMENTS_END = 20;

// --- POINTS: GatherND and ScatterND of runs of 4-byte elements ---
// For batch b and point i of COUNT: ids = IDS[b, i, 0..DEPTH-1] (i32, negative from the end, clamped); the run of
// INNER elements at DATA + b*BATCHSTRIDE*4 + sum of ids_j * stride_j * 4. TABLE: i32 [DEPTH][size, stride].
// VALUES [BATCH, COUNT, INNER]. MODE as ELEMENTS.
export const POINTS = 27;
export const POINTS_MODE = 2;
export const POINTS_DATA = 3;
export const POINTS_IDS = 4;
export const POINTS_VALUES = 5;
export const POINTS_BATCH = 6;
export const POINTS_BATCHSTRIDE = 7;
export const POINTS_COUNT = 8;
export const POINTS_DEPTH = 9;
export const POINTS_INNER = 10;
export const POINTS_TABLE = 11;
export const POINTS_END = 12;
