export interface Rules {
  readonly rules: readonly {
    readonly id: string;
    /** One sentence. */
    readonly rule: string;
    readonly test: { readonly file: string; readonly name: string };
    /** A change of the code that makes the test fail; `what` says it in words. */
    readonly mutation: {
      readonly file: string;
      readonly what: string;
      readonly find: string;
      readonly replace: string;
    };
  }[];
  readonly notApplicable: readonly { readonly id: string; readonly rule: string; readonly why: string }[];
}
export declare function rulesDocument(rules: Rules): string;
export declare function findTitle(source: string, name: string): string | undefined;
