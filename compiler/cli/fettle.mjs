#!/usr/bin/env node
/**
 * The `fettle` command. In an installed package it starts the built JavaScript; in a source checkout,
 * where main.ts lies beside this file, it starts the TypeScript through tsx, so nothing has to be built.
 */
import { existsSync } from 'node:fs';

if (existsSync(new URL('./main.ts', import.meta.url))) {
  const { register } = await import('tsx/esm/api');
  register();
  const { main } = await import('./main.ts');
  process.exitCode = await main(process.argv.slice(2));
} else {
  const { main } = await import('../../dist/compiler/cli/main.js');
  process.exitCode = await main(process.argv.slice(2));
}
