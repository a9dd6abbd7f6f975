/**
 * Words of the parameter block of the rounding kernels, shared by AssemblyScript and TypeScript. Addresses
 * and counts, 32 bits each. A panel is 8 rows of a matrix side by side, [K][8] f32: a vector holds one
 * column of 4 rows, so that everything a rounding method does to a row is done to 8 at once.
 */

/** Rows of a panel. */
export const PANEL_ROWS = 8;

/** Targets, [panels][K][8]. */
export const ROUND_W = 0;
/** Rounded values, [panels][K][8]. */
export const ROUND_Q = 1;
/** Levels: rounded values over their scales, [panels][K][8]. */
export const ROUND_LEVEL = 2;
/** Scratch: errors of a panel, [K][8]. */
export const ROUND_E = 3;
/** Transposed upper factor of the inverse Hessian, [K][K]. */
export const ROUND_UT = 4;
/** Hessian, [K][K]. */
export const ROUND_H = 5;
/** The same factor of every group alone: [K][group], row k holds the group of k. */
export const ROUND_GROUP_UT = 6;
/** Inverse Hessian of every group alone, [K][group]. */
export const ROUND_GROUP_INVERSE = 7;
/** Scales, [panels][groups][8]. */
export const ROUND_SCALE = 8;
/** Zero points, [panels][groups][8]. */
export const ROUND_ZERO = 9;
/** Panels. */
export const ROUND_PANELS = 10;
/** Columns. */
export const ROUND_K = 11;
/** Columns that share a scale. */
export const ROUND_GROUP = 12;
/** Group of each column, [K] i32. */
export const ROUND_GROUP_OF = 13;
/** From the lowest level to the highest; unused with a codebook. */
export const ROUND_TOP = 14;
/** Whether the zero point is in the middle. */
export const ROUND_SYMMETRIC = 15;
/** 0, or a codebook: 16 ascending f32 entries and the 15 middles between them. */
export const ROUND_BOOK = 16;
/** Factors on a scale to try, f32. */
export const ROUND_FACTORS = 17;
/** How many. */
export const ROUND_FACTOR_COUNT = 18;
/** Zero points to try on either side. */
export const ROUND_OFFSETS = 19;
/** Whether a scale is judged with the errors of its group fed back. */
export const ROUND_FEEDBACK = 20;
/** Scratch: [6 * group + 64][8] f32. */
export const ROUND_SCRATCH = 21;
/** Whether sweeps search scales anew from the range of their targets, rather than beside the present ones. */
export const ROUND_FRESH = 22;
/** Whether sweeps try scales at all. */
export const ROUND_RESCALE = 23;
/** From a level to the next: 1, or 2 where zero points may lie between two levels. */
export const ROUND_STEP = 24;
/** Words of the block. */
export const ROUND_WORDS = 25;
