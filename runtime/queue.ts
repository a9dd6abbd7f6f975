/** Runs tasks one after the other, in the order they were added, whether or not earlier ones failed. */
export class Queue {
  #last: Promise<unknown> = Promise.resolve();

  /** Runs `task` when all earlier ones have settled; settles as it does. */
  add<T>(task: () => Promise<T>): Promise<T> {
    const result = this.#last.then(task);
    this.#last = result.catch(() => {});
    return result;
  }
}
