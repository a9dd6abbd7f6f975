import { deepEqual, equal, match, throws } from 'node:assert/strict';
import { test } from 'node:test';
import {
  averageBits,
  defaultRecipe,
  isAuto,
  parseFixOption,
  parseRecipe,
  parseShapeOption,
  presetRecipe,
  presets,
} from '../../compiler/recipe.ts';
import { formatBytes, parseFraction, parseSize } from '../../compiler/units.ts';
import type { FettleError } from '../../runtime/errors.ts';

function usage(pattern: RegExp, fix?: RegExp): (error: unknown) => boolean {
  return (error) => {
    const { code, message, fix: saw } = error as FettleError;
    equal(code, 'USAGE');
    match(message, pattern);
    if (fix !== undefined) match(saw ?? '', fix);
    return true;
  };
}

test('an empty recipe is the default one, and JSON of a recipe reads back as the same recipe', () => {
  deepEqual(parseRecipe({}), defaultRecipe);
  const recipe = parseRecipe({
    weights: 'w4g32',
    clip: 'none',
    skip: ['lm_head', '*.norm.weight'],
    embeddings: 'w8g32',
    shapes: { x: [1, 3, 48, '?'] },
    fixed: { sr: 16000 },
    maxSize: '3MB',
    maxMemory: '450 MiB',
    maxLoss: '1%',
    contextLength: 512,
    seed: 7,
  });
  equal(recipe.maxSize, 3_000_000);
  equal(recipe.maxMemory, 450 * 2 ** 20);
  equal(recipe.maxLoss, 0.01);
  deepEqual(parseRecipe(JSON.parse(JSON.stringify(recipe))), recipe);
});

test('fields given over a base keep what they do not mention', () => {
  const recipe = parseRecipe({ maxSize: 10 }, presetRecipe('small'));
  equal(recipe.weights, 'w4g32');
  equal(recipe.maxSize, 10);
});

test('every preset is a recipe that parses', () => {
  for (const { recipe } of Object.values(presets)) deepEqual(parseRecipe(recipe), recipe);
});

test('a misspelt field or preset names the one that was meant', () => {
  throws(() => parseRecipe({ wieghts: 'w4g32' }), usage(/no field "wieghts"/, /"weights"/));
  throws(() => parseRecipe({ toString: 1 }), usage(/no field "toString"/));
  throws(() => presetRecipe('smal'), usage(/no recipe called "smal"/, /"small"/));
  throws(() => presetRecipe('toString'), usage(/no recipe called/));
});

test('values that no recipe can have are refused with the field and what was wanted', () => {
  throws(() => parseRecipe([]), usage(/JSON object, not \[\]/));
  throws(() => parseRecipe({ weights: 4 }), usage(/^weights: wanted a weight format/));
  throws(() => parseRecipe({ weights: 'w4g33' }), usage(/number format "w4g33"/, /w4g32/));
  throws(() => parseRecipe({ clip: 'MSE' }), usage(/^clip: wanted mse or none, got "MSE"/));
  throws(() => parseRecipe({ fixed: { sr: '16k' } }), usage(/^fixed: .*16k/));
  deepEqual(parseFixOption('sr=16000'), ['sr', 16000]);
  throws(() => parseFixOption('sr'), usage(/names no input/));
  throws(() => parseFixOption('sr=fast'), usage(/names no input/));
  throws(() => parseRecipe({ shapes: { x: [1, 0] } }), usage(/^shapes: .*"x".*\[1,0\]/));
  throws(() => parseRecipe({ shapes: { x: [1, 2.5] } }), usage(/^shapes/));
  throws(() => parseRecipe({ maxSize: '3 apples' }), usage(/^maxSize: wanted a size/));
  throws(() => parseRecipe({ maxSize: 0 }), usage(/^maxSize/));
  throws(() => parseRecipe({ maxLoss: '200%' }), usage(/^maxLoss: wanted a fraction/));
  throws(() => parseRecipe({ kv: 'f8' }), usage(/^kv: wanted source, f32 or f16/));
  throws(() => parseRecipe({ seed: -1 }), usage(/^seed: wanted a whole number >= 0/));
});

test('what a later version brings says that it is not supported yet', () => {
  throws(() => parseRecipe({ dropLayers: 2 }), usage(/^dropLayers: 2 is not supported yet/));
  throws(() => parseRecipe({ dropLayers: 'auto' }), usage(/not supported yet/));
  throws(() => parseRecipe({ kv: 'kv8' }), usage(/^kv: "kv8" is not supported yet/, /f16/));
});

test('formats chosen one by one take an average, and baselines to compare with have names', () => {
  deepEqual(parseRecipe({ weights: 'auto:4.2' }).weights, 'auto:4.2');
  deepEqual(averageBits('auto:4.2'), 4.2);
  deepEqual(averageBits('auto'), undefined);
  deepEqual(
    [isAuto('auto'), isAuto('auto:3'), isAuto('w4g32'), isAuto(undefined)],
    [true, true, false, false],
  );
  for (const weights of ['auto:', 'auto:0.5', 'auto:33', 'auto:x'])
    throws(() => parseRecipe({ weights }), usage(/^weights: wanted auto/));
  throws(() => parseRecipe({ embeddings: 'auto:4' }), usage(/^embeddings/));
  const recipe = { rounding: 'gptq', allocate: 'hawq', refine: 'evolve' };
  deepEqual(parseRecipe(recipe), { ...defaultRecipe, ...recipe });
  throws(() => parseRecipe({ rounding: 'gtpq' }), usage(/^rounding: wanted nearest/));
  throws(() => parseRecipe({ allocate: 'best' }), usage(/^allocate: wanted ours/));
});

test('transforms come in their own order, and rotations are kept from rounding', () => {
  const { transforms, skip } = parseRecipe({
    transforms: 'rotate-values,rotate-spine',
    skip: ['a'],
  });
  deepEqual(transforms, ['rotate-spine', 'rotate-values']);
  deepEqual(skip, ['a', 'rotation*']);
  deepEqual(parseRecipe({ transforms: ['equalize-layers'] }).skip, []);
  throws(
    () => parseRecipe({ transforms: 'rotate' }),
    usage(/^transforms: wanted a list of equalize/),
  );
  const chosen = 'correct-bias,scale-channels:smooth,rotate-spine:untie,rotate-spine:tied';
  deepEqual(parseRecipe({ transforms: chosen }).transforms, [
    'rotate-spine:untie',
    'scale-channels:smooth',
    'correct-bias',
  ]);
  deepEqual(parseRecipe({ transforms: 'rotate-spine:tied' }).skip, ['rotation*']);
  for (const wrong of ['rotate-spine:', 'rotate-values:tied', 'scale-channels:a:b', 'constructor'])
    throws(() => parseRecipe({ transforms: wrong }), usage(/^transforms: wanted a list of/));
});

test('a shape option reads numbers, and ? where sizes stay open', () => {
  deepEqual(parseShapeOption('x=1x3x48x320'), ['x', [1, 3, 48, 320]]);
  deepEqual(parseShapeOption('a=b=?,3'), ['a=b', ['?', 3]]);
  deepEqual(parseShapeOption('x=7'), ['x', [7]]);
  throws(() => parseShapeOption('x'), usage(/Cannot read the shape "x"/));
  throws(() => parseShapeOption('x=1xx3'), usage(/sizes > 0/));
  throws(() => parseShapeOption('x=1x-3'), usage(/sizes > 0/));
});

test('sizes and fractions read in the units people write', () => {
  equal(parseSize('4096', 'o'), 4096);
  equal(parseSize('1.5GiB', 'o'), 1.5 * 2 ** 30);
  equal(parseSize('2kb', 'o'), 2000);
  throws(() => parseSize('-3MB', 'o'), usage(/^o: /));
  throws(() => parseSize(NaN, 'o'), usage(/^o: /));
  equal(parseFraction('0.5', 'o'), 0.5);
  throws(() => parseFraction('', 'o'), usage(/^o: /));
  equal(formatBytes(999), '999 B');
  equal(formatBytes(82_345_678), '82.3 MB');
  equal(formatBytes(999_999), '1.00 MB');
});
