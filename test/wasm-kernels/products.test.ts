import test from 'node:test';
import * as abi from '../../runtime/wasm/kernels/abi.ts';
import { floatBits } from '../../runtime/wasm/step.ts';
import { KernelBench, close, coordinates, hostVariants, noise, sum } from '../support/kernels.ts';

for (const variant of await hostVariants()) {
  for (const transposed of [0, 1])
    test(`${variant}: MATMUL ${transposed ? 'with a transposed second operand' : 'of two activations'}, batched and broadcast`, async () => {
      const bench = await KernelBench.open(variant);
      const [B, H, M, K, N] = [2, 3, 6, 10, 11];
      const [x, w] = [noise(B * H * M * K, 1), noise(H * K * N, 2)];
      const y = bench.allot(B * H * M * N * 4);
      bench.run('MATMUL', {
        X: bench.floats(x),
        XROW: K * 4,
        XBATCH: H * M * K * 4,
        XHEAD: M * K * 4,
        W: bench.floats(w),
        WROW: (transposed ? K : N) * 4,
        WBATCH: 0,
        WHEAD: K * N * 4,
        TRANSPOSED: transposed,
        Y: y,
        YROW: N * 4,
        YBATCH: H * M * N * 4,
        YHEAD: M * N * 4,
        BATCH: B,
        HEADS: H,
        M,
        K,
        N,
        SCALE: floatBits(0.5),
      });
      const want = Array.from({ length: B * H * M * N }, (_, i) => {
        const [b = 0, h = 0, m = 0, n = 0] = coordinates(i, [B, H, M, N]);
        return sum(
          Array.from(
            { length: K },
            (_unused, k) =>
              0.5 *
              (x[((b * H + h) * M + m) * K + k] ?? 0) *
              (w[h * K * N + (transposed ? n * K + k : k * N + n)] ?? 0),
          ),
        );
      });
      close(bench.readFloats(y, want.length), want, 1e-6);
    });

  const convolutions = [
    {
      name: '3x3 padded',
      cin: 5,
      cout: 7,
      size: [9, 20],
      k: [3, 3],
      stride: [1, 1],
      pad: [1, 1],
      dilation: [1, 1],
      groups: 1,
    },
    {
      name: 'strided, two groups',
      cin: 4,
      cout: 10,
      size: [11, 10],
      k: [3, 2],
      stride: [2, 2],
      pad: [0, 1],
      dilation: [1, 1],
      groups: 2,
    },
    {
      name: 'dilated 1-D',
      cin: 3,
      cout: 4,
      size: [1, 40],
      k: [1, 3],
      stride: [1, 1],
      pad: [0, 2],
      dilation: [1, 2],
      groups: 1,
    },
    {
      name: '1x1',
      cin: 8,
      cout: 6,
      size: [5, 5],
      k: [1, 1],
      stride: [1, 1],
      pad: [0, 0],
      dilation: [1, 1],
      groups: 1,
    },
    {
      name: 'depthwise',
      cin: 6,
      cout: 6,
      size: [8, 13],
      k: [3, 3],
      stride: [1, 1],
      pad: [1, 1],
      dilation: [1, 1],
      groups: 6,
    },
    {
      name: 'depthwise strided',
      cin: 3,
      cout: 3,
      size: [9, 9],
      k: [5, 3],
      stride: [2, 2],
      pad: [2, 1],
      dilation: [1, 1],
      groups: 3,
    },
  ];
  for (const { name, cin, cout, size, k, stride, pad, dilation, groups } of convolutions)
    for (const first of [0, 1])
      test(`${variant}: CONV ${name}, residual ${first ? 'before' : 'after'} the activation`, async () => {
        const bench = await KernelBench.open(variant);
        const [
          [H = 0, W = 0],
          [KH = 0, KW = 0],
          [SH = 0, SW = 0],
          [PT = 0, PL = 0],
          [DH = 0, DW = 0],
        ] = [size, k, stride, pad, dilation];
        const out = (n: number, p: number, kk: number, s: number, d: number): number =>
          Math.floor((n + 2 * p - d * (kk - 1) - 1) / s) + 1;
        const [HO, WO] = [out(H, PT, KH, SH, DH), out(W, PL, KW, SW, DW)];
        const B = 2;
        const per = cin / groups;
        const [x, w, bias, residual] = [
          noise(B * cin * H * W, 1),
          noise(cout * per * KH * KW, 2),
          noise(cout, 3),
          noise(B * cout * HO * WO, 4),
        ];
        const y = bench.allot(residual.length * 4);
        bench.run('CONV', {
          X: bench.floats(x),
          Y: y,
          BATCH: B,
          CIN: cin,
          HIN: H,
          WIN: W,
          COUT: cout,
          HOUT: HO,
          WOUT: WO,
          KH,
          KW,
          STRIDEH: SH,
          STRIDEW: SW,
          DILATIONH: DH,
          DILATIONW: DW,
          PADTOP: PT,
          PADLEFT: PL,
          GROUPS: groups,
          W: bench.floats(w),
          BIAS: bench.floats(bias),
          ACTIVATION: abi.ACT_RELU,
          RESIDUAL: bench.floats(residual),
          RESIDUALFIRST: first,
          PANEL: bench.allot(per * KH * KW * 64),
          PANELBYTES: per * KH * KW * 64,
        });
        const want = residual.map((rest, i) => {
          const [b = 0, o = 0, r = 0, c = 0] = coordinates(i, [B, cout, HO, WO]);
          let t = bias[o] ?? 0;
          for (let ci = 0; ci < per; ci++)
            for (let ky = 0; ky < KH; ky++)
              for (let kx = 0; kx < KW; kx++) {
                const [iy, ix] = [r * SH - PT + ky * DH, c * SW - PL + kx * DW];
                if (iy < 0 || iy >= H || ix < 0 || ix >= W) continue;
                const channel = Math.floor(o / (cout / groups)) * per + ci;
                t +=
                  (x[((b * cin + channel) * H + iy) * W + ix] ?? 0) *
                  (w[((o * per + ci) * KH + ky) * KW + kx] ?? 0);
              }
          return first ? Math.max(t + rest, 0) : Math.max(t, 0) + rest;
        });
        close(bench.readFloats(y, want.length), want, 4e-6);
      });

  test(`${variant}: POOL takes the largest, the mean, and the mean over padding`, async () => {
    const bench = await KernelBench.open(variant);
    const [P, H, W, HO, WO] = [3, 7, 8, 4, 4];
    const x = noise(P * H * W, 1);
    for (const KIND of [0, 1, 2]) {
      const y = bench.allot(P * HO * WO * 4);
      bench.run('POOL', {
        X: bench.floats(x),
        Y: y,
        PLANES: P,
        HIN: H,
        WIN: W,
        HOUT: HO,
        WOUT: WO,
        KH: 3,
        KW: 3,
        STRIDEH: 2,
        STRIDEW: 2,
        DILATIONH: 1,
        DILATIONW: 1,
        PADTOP: 1,
        PADLEFT: 1,
        KIND,
        PADBOTTOM: 1,
        PADRIGHT: 0,
      });
      const want = Array.from({ length: P * HO * WO }, (_, i) => {
        const [p = 0, r = 0, c = 0] = coordinates(i, [P, HO, WO]);
        const inside: number[] = [];
        let counted = 0;
        for (let iy = r * 2 - 1; iy < r * 2 + 2; iy++)
          for (let ix = c * 2 - 1; ix < c * 2 + 2; ix++) {
            if (iy >= 0 && iy < H && ix >= 0 && ix < W) inside.push(x[(p * H + iy) * W + ix] ?? 0);
            if (iy < H + 1 && ix < W) counted++;
          }
        return KIND === 0
          ? Math.max(...inside)
          : sum(inside) / (KIND === 1 ? inside.length : counted);
      });
      close(bench.readFloats(y, want.length), want, 3e-7);
    }
  });
}
