/**
 * The buffers of a GPU MMU on one device, and the transfers between them and this agent. Bytes go through memory that is
 * not shared: WebGPU takes no other.
 */
import { MmError } from "../../errors.ts";
import { runsOf } from "../../units.ts";
import {
  BINDING_CONTROL,
  BINDING_POOL,
  BINDING_TABLE,
  type MmuLayout,
  PARAMETER_WORDS,
} from "./mmuShader.ts";

/** Thrown where a transfer failed because the device is gone. */
export class DeviceLost extends Error {
  override readonly name: string = "DeviceLost";
}

const STORAGE_BUFFERS = 3;
/** Pages that come home at once. */
export const STAGING_PAGES = 256;

/** What a device must allow. Errors: ENOTSUP, EINVAL. */
export function checkLimits(device: GPUDevice, layout: MmuLayout, group: number, operation: string): void {
  const { limits } = device;
  const bytes = layout.pages * 2 ** layout.pageShift;
  const most = Math.min(limits.maxStorageBufferBindingSize, limits.maxBufferSize);
  const largest = Math.max(bytes, 8 * 2 ** layout.tableShift, 4 * layout.finishedAt);
  if (largest > most) {
    throw new MmError(
      "ENOTSUP",
      operation,
      `a budget of ${bytes} bytes needs a storage buffer of ${largest}, and the device allows ${most}; ` +
        "take a smaller budget, or ask for a larger maxStorageBufferBindingSize and maxBufferSize",
    );
  }
  if (limits.maxStorageBuffersPerShaderStage < STORAGE_BUFFERS) {
    throw new MmError(
      "ENOTSUP",
      operation,
      `needs ${STORAGE_BUFFERS} storage buffers in a shader stage, and the device allows ${limits.maxStorageBuffersPerShaderStage}`,
    );
  }
  if (group >= limits.maxBindGroups) {
    throw new MmError(
      "EINVAL",
      operation,
      `group must be below the ${limits.maxBindGroups} bind groups of the device`,
    );
  }
}

/** Runs `make` and throws what the device has to say against it. */
async function withScopes<T>(device: GPUDevice, operation: string, what: string, make: () => T): Promise<T> {
  device.pushErrorScope("validation");
  device.pushErrorScope("out-of-memory");
  let made: T;
  let scopes: Promise<(GPUError | null)[]>;
  try {
    made = make();
  } finally {
    scopes = Promise.all([device.popErrorScope(), device.popErrorScope()]);
    scopes.catch(() => {}); // a device that is lost has no scopes
  }
  const [memory, validation] = await scopes.catch(() => [null, null]);
  if (memory) {
    throw new MmError("ENOMEM", operation, `the GPU has no memory for ${what}: ${memory.message}`);
  }
  if (validation) throw new MmError("EINVAL", operation, `${what}: ${validation.message}`);
  return made;
}

const storage = (binding: number, type: GPUBufferBindingType): GPUBindGroupLayoutEntry => ({
  binding,
  visibility: GPUShaderStage.COMPUTE,
  buffer: { type },
});

/** What came back of a round; a copy. */
export type ReadBack = Uint32Array<ArrayBuffer>;

export class MmuDevice {
  readonly device: GPUDevice;
  readonly layout: MmuLayout;
  readonly bindGroupLayout: GPUBindGroupLayout;
  readonly #pool: GPUBuffer;
  readonly #table: GPUBuffer;
  readonly #readback: GPUBuffer;
  readonly #staging: GPUBuffer;
  #turn: Promise<unknown> = Promise.resolve();
  #control: GPUBuffer;
  #finishedWords: number;
  #groups = new WeakMap<GPUBindGroupLayout, GPUBindGroup>();

  private constructor(device: GPUDevice, layout: MmuLayout) {
    const { COPY_DST, COPY_SRC, MAP_READ, STORAGE } = GPUBufferUsage;
    this.device = device;
    this.layout = layout;
    this.bindGroupLayout = device.createBindGroupLayout({
      label: "bifolio",
      entries: [
        storage(BINDING_TABLE, "read-only-storage"),
        storage(BINDING_CONTROL, "storage"),
        storage(BINDING_POOL, "storage"),
      ],
    });
    const make = (label: string, size: number, usage: number): GPUBuffer =>
      device.createBuffer({ label: `bifolio ${label}`, size, usage });
    this.#pool = make("pool", layout.pages * 2 ** layout.pageShift, STORAGE | COPY_DST | COPY_SRC);
    this.#table = make("table", 8 * 2 ** layout.tableShift, STORAGE | COPY_DST);
    this.#readback = make("read-back", 4 * layout.parametersAt, MAP_READ | COPY_DST);
    const stagingPages = Math.min(layout.pages, STAGING_PAGES);
    this.#staging = make("staging", stagingPages * 2 ** layout.pageShift, MAP_READ | COPY_DST);
    this.#finishedWords = 1;
    this.#control = this.#makeControl();
  }

  /** Errors: ENOTSUP, EINVAL, ENOMEM; then nothing is left of it. */
  static async create(
    device: GPUDevice,
    layout: MmuLayout,
    group: number,
    operation: string,
  ): Promise<MmuDevice> {
    checkLimits(device, layout, group, operation);
    let made: MmuDevice | undefined;
    const make = (): MmuDevice => (made = new MmuDevice(device, layout));
    try {
      return await withScopes(device, operation, "the page pool", make);
    } catch (error) {
      (made as MmuDevice | undefined)?.destroy();
      throw error;
    }
  }

  #makeControl(): GPUBuffer {
    return this.device.createBuffer({
      label: "bifolio control",
      size: 4 * (this.layout.finishedAt + this.#finishedWords),
      usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST | GPUBufferUsage.COPY_SRC,
    });
  }

  /** Bytes of all buffers. */
  get bytes(): number {
    return this.#buffers.reduce((sum, { size }) => sum + size, 0);
  }

  get #buffers(): GPUBuffer[] {
    return [this.#pool, this.#table, this.#readback, this.#staging, this.#control];
  }

  /** Makes room for the marks of so many invocations. Errors: ENOTSUP, ENOMEM; then it is as before. */
  async reserve(invocations: number, operation: string): Promise<void> {
    const words = Math.max(1, Math.ceil(invocations / 32));
    if (words <= this.#finishedWords) return;
    const { limits } = this.device;
    const bytes = 4 * (this.layout.finishedAt + words);
    if (bytes > Math.min(limits.maxStorageBufferBindingSize, limits.maxBufferSize)) {
      throw new MmError(
        "ENOTSUP",
        operation,
        `${invocations} invocations need a storage buffer of ${bytes} bytes, more than the device allows; use several runs`,
      );
    }
    const before = this.#finishedWords;
    this.#finishedWords = words;
    let control: GPUBuffer | undefined;
    try {
      await withScopes(
        this.device,
        operation,
        "the marks of invocations",
        () => (control = this.#makeControl()),
      );
    } catch (error) {
      this.#finishedWords = before;
      control?.destroy();
      throw error;
    }
    this.#control.destroy();
    this.#control = control!;
    this.#groups = new WeakMap();
  }

  /** The bind group for pipelines of this layout, which may be one that WebGPU derived from a shader. */
  groupFor(layout: GPUBindGroupLayout): GPUBindGroup {
    let group = this.#groups.get(layout);
    if (!group) {
      const entry = (binding: number, buffer: GPUBuffer): GPUBindGroupEntry => ({
        binding,
        resource: { buffer },
      });
      group = this.device.createBindGroup({
        label: "bifolio",
        layout,
        entries: [
          entry(BINDING_TABLE, this.#table),
          entry(BINDING_CONTROL, this.#control),
          entry(BINDING_POOL, this.#pool),
        ],
      });
      this.#groups.set(layout, group);
    }
    return group;
  }

  writeTable(words: Uint32Array<ArrayBuffer>, at: number, count: number): void {
    this.device.queue.writeBuffer(this.#table, 4 * at, words, at, count);
  }

  /** Bytes of whole pages, which lie in the pool from `slot` on. */
  writePages(slot: number, bytes: Uint8Array<ArrayBuffer>): void {
    this.device.queue.writeBuffer(this.#pool, slot * 2 ** this.layout.pageShift, bytes);
  }

  /**
   * Submits one round: clears, runs what `encode` puts into the pass, reads back. The device has it when this returns; the
   * promise is the answer. Errors: what `encode` throws, at once; EINVAL and ENOMEM for what the device says against it;
   * DeviceLost.
   */
  submitRound(
    parameters: Uint32Array<ArrayBuffer>,
    newRun: boolean,
    encode: (pass: GPUComputePassEncoder) => void,
  ): Promise<ReadBack> {
    const { device, layout } = this;
    const { queue } = device;
    device.pushErrorScope("validation");
    device.pushErrorScope("out-of-memory");
    let submitted = false;
    let scopes: Promise<(GPUError | null)[]>;
    try {
      queue.writeBuffer(this.#control, 4 * layout.parametersAt, parameters, 0, PARAMETER_WORDS);
      const encoder = device.createCommandEncoder({ label: "bifolio round" });
      encoder.clearBuffer(this.#control, 0, 4 * layout.parametersAt);
      if (newRun) encoder.clearBuffer(this.#control, 4 * layout.finishedAt, 4 * this.#finishedWords);
      const pass = encoder.beginComputePass({ label: "bifolio round" });
      encode(pass);
      pass.end();
      encoder.copyBufferToBuffer(this.#control, 0, this.#readback, 0, 4 * layout.parametersAt);
      queue.submit([encoder.finish()]);
      submitted = true;
    } finally {
      scopes = Promise.all([device.popErrorScope(), device.popErrorScope()]);
      if (!submitted) scopes.catch(() => {});
    }
    return this.#answer(scopes, this.#readback.mapAsync(GPUMapMode.READ));
  }

  async #answer(scopes: Promise<(GPUError | null)[]>, mapped: Promise<unknown>): Promise<ReadBack> {
    let errors: (GPUError | null)[];
    try {
      [errors] = await Promise.all([scopes, mapped]);
    } catch (cause) {
      throw new DeviceLost("the device was lost while a dispatch ran", { cause });
    }
    const words = new Uint32Array(this.#readback.getMappedRange().slice(0));
    this.#readback.unmap();
    const [memory, validation] = errors;
    if (memory) throw new MmError("ENOMEM", "run", `the GPU ran out of memory: ${memory.message}`);
    if (validation) throw new MmError("EINVAL", "run", `WebGPU refused the dispatch: ${validation.message}`);
    return words;
  }

  /**
   * The bytes of pool pages after everything submitted before, page by page in the order of `slots`, STAGING_PAGES at most.
   * The buffer for it was made in advance: there is no want of memory that could keep them from coming home. Errors: DeviceLost.
   */
  async readPages(slots: readonly number[]): Promise<Uint8Array<ArrayBuffer>> {
    // One after the other: there is one buffer.
    const turn = this.#turn.then(() => this.#readPagesNow(slots));
    this.#turn = turn.catch(() => {});
    return turn;
  }

  async #readPagesNow(slots: readonly number[]): Promise<Uint8Array<ArrayBuffer>> {
    const { device, layout } = this;
    const pageSize = 2 ** layout.pageShift;
    const size = slots.length * pageSize;
    try {
      const encoder = device.createCommandEncoder({ label: "bifolio write-back" });
      let at = 0;
      for (const { first, end } of runsOf(slots)) {
        encoder.copyBufferToBuffer(this.#pool, first * pageSize, this.#staging, at, (end - first) * pageSize);
        at += (end - first) * pageSize;
      }
      device.queue.submit([encoder.finish()]);
      await this.#staging.mapAsync(GPUMapMode.READ, 0, size);
      const bytes = new Uint8Array(this.#staging.getMappedRange(0, size).slice(0));
      this.#staging.unmap();
      return bytes;
    } catch (cause) {
      throw new DeviceLost("the device was lost before the bytes that it wrote were read", { cause });
    }
  }

  destroy(): void {
    for (const buffer of this.#buffers) buffer.destroy();
  }
}
