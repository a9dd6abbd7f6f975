/**
 * The conformance cases that are not passed, and why. `conformance.test.ts` fails when a listed case
 * starts passing or one that is not listed fails.
 */

/** Cases that share a reason. */
export interface Exceptions {
  /** Which check they do not pass: running the model, or inferring its output shapes. */
  readonly check: 'evaluate' | 'infer';
  /** Why. */
  readonly reason: string;
  /** Folder names. */
  readonly cases: readonly string[];
}

/** Every exception. */
export const exceptions: readonly Exceptions[] = [
  {
    check: 'evaluate',
    reason: 'the case is wrong: input "like" is declared as [3, 4] and its data is [1]',
    cases: [
      'test_castlike_BFLOAT16_to_FLOAT',
      'test_castlike_BFLOAT16_to_FLOAT_expanded',
      'test_castlike_FLOAT_to_BFLOAT16',
    ],
  },
  {
    check: 'infer',
    reason: 'how many boxes are kept depends on the boxes',
    cases: [
      'test_nonmaxsuppression_flipped_coordinates',
      'test_nonmaxsuppression_limit_output_size',
      'test_nonmaxsuppression_single_box',
      'test_nonmaxsuppression_suppress_by_IOU_and_scores',
    ],
  },
  {
    check: 'infer',
    reason: 'how many elements differ depends on the elements',
    cases: [
      'test_unique_not_sorted_without_axis',
      'test_unique_sorted_with_axis',
      'test_unique_sorted_with_axis_3d',
      'test_unique_sorted_with_negative_axis',
    ],
  },
  {
    check: 'infer',
    reason: 'the size comes from a Slice whose bounds are computed inside the loop',
    cases: ['test_loop11'],
  },
  {
    check: 'infer',
    reason: 'the trip count is the ceiling of a quotient of floats, which is not followed',
    cases: ['test_range_float_type_positive_delta_expanded'],
  },
];
