;; Bulk kernels over the shared segment: what JavaScript would do one Atomics call at a time.
;; Compiled by scripts/buildWasm.mjs into kernelsWasm.ts (base64); everything works without it, slower.
;;
;; Conventions
;;   - Addresses (dst, src, ptr) are byte addresses in the memory, unsigned 32 bit, so 4 GiB minus one at most.
;;     JavaScript passes them as numbers; ToInt32 wraps them and wasm reads the bits as unsigned.
;;   - `len` counts bytes, `count` counts 32-bit words. Zero is allowed and touches nothing.
;;   - `ptr` of a word kernel is a multiple of 4 (atomic accesses trap otherwise).
;;   - A range that leaves the memory traps (a WebAssembly.RuntimeError in JavaScript). The two byte kernels
;;     trap before they change anything; a word kernel may have handled the words before the end.
;;   - No kernel waits, and none contains a safepoint.
(module
  ;; minimum 1 page; maximum 65536 pages = 4 GiB, so that any shared memory up to that size links.
  (import "env" "memory" (memory 1 65536 shared))

  ;; fill(dst, byte, len): sets len bytes at dst to the low 8 bits of `byte`.
  ;; Not atomic: the caller owns the bytes (a frame not yet, or no longer, mapped).
  (func (export "fill") (param $dst i32) (param $byte i32) (param $len i32)
    (memory.fill (local.get $dst) (local.get $byte) (local.get $len)))

  ;; copy(dst, src, len): memmove; the ranges may overlap. Not atomic: a byte of src that another agent
  ;; writes meanwhile arrives old or new.
  (func (export "copy") (param $dst i32) (param $src i32) (param $len i32)
    (memory.copy (local.get $dst) (local.get $src) (local.get $len)))

  ;; protectRange(ptr, count, andMask, orMask) -> OR of all old words.
  ;; Every word whose bit 0 (valid) is set becomes (old & andMask) | orMask, by compare-exchange, so that an
  ;; accessed or dirty bit which another agent sets meanwhile is never lost. A word without the valid bit
  ;; is left alone, also if it loses that bit between our load and our exchange.
  ;; For a changed word, "old" is the value that the exchange replaced.
  (func (export "protectRange")
    (param $ptr i32) (param $count i32) (param $and i32) (param $or i32) (result i32)
    (local $seen i32)     ;; the OR so far
    (local $old i32)      ;; value this round expects in the word
    (local $found i32)    ;; value the exchange found there
    (block $done
      (br_if $done (i32.eqz (local.get $count)))
      (loop $word
        (local.set $old (i32.atomic.load (local.get $ptr)))
        (block $next
          (loop $retry
            (br_if $next (i32.eqz (i32.and (local.get $old) (i32.const 1))))
            (local.set $found
              (i32.atomic.rmw.cmpxchg
                (local.get $ptr)
                (local.get $old)
                (i32.or (i32.and (local.get $old) (local.get $and)) (local.get $or))))
            (br_if $next (i32.eq (local.get $found) (local.get $old)))
            ;; Lost a race: go on with the value found, a second load could be staler than that.
            (local.set $old (local.get $found))
            (br $retry)))
        (local.set $seen (i32.or (local.get $seen) (local.get $old)))
        (local.set $ptr (i32.add (local.get $ptr) (i32.const 4)))
        (local.set $count (i32.sub (local.get $count) (i32.const 1)))
        (br_if $word (local.get $count))))
    (local.get $seen))

  ;; orRange(ptr, count) -> OR of all words; 0 says that every word is empty. Each word is loaded atomically,
  ;; the range as a whole is not a snapshot.
  (func (export "orRange") (param $ptr i32) (param $count i32) (result i32)
    (local $seen i32)
    (block $done
      (br_if $done (i32.eqz (local.get $count)))
      (loop $word
        (local.set $seen (i32.or (local.get $seen) (i32.atomic.load (local.get $ptr))))
        (local.set $ptr (i32.add (local.get $ptr) (i32.const 4)))
        (local.set $count (i32.sub (local.get $count) (i32.const 1)))
        (br_if $word (local.get $count))))
    (local.get $seen))

  ;; getRange(ptr, count, mask, want, step, soft, ref, stride, bits, most) -> n, or ~n.
  ;; Takes a reference to the frame of each page-table word from ptr on, as long as (word & mask) == want, where want
  ;; grows by `step` from word to word; the counters of the frames are the words at ref, ref + stride, ... Sets the bits
  ;; `soft` in each word. Stops at the first word that does not match, whose frame is free or has `most` references in the
  ;; `bits` of its counter, or that changes meanwhile.
  ;; n is how many have been taken; ~n says that the frame of the n-th word has one reference too many, which the
  ;; caller gives back: the word changed after it was taken.
  (func (export "getRange")
    (param $ptr i32) (param $count i32) (param $mask i32) (param $want i32) (param $step i32) (param $soft i32)
    (param $ref i32) (param $stride i32) (param $bits i32) (param $most i32) (result i32)
    (local $n i32)
    (local $old i32)      ;; the word, when its frame was looked up
    (local $refs i32)     ;; references that this round expects
    (local $found i32)
    (block $done
      (loop $word
        (br_if $done (i32.eq (local.get $n) (local.get $count)))
        (local.set $old (i32.atomic.load (local.get $ptr)))
        (br_if $done (i32.ne (i32.and (local.get $old) (local.get $mask)) (local.get $want)))
        (local.set $refs (i32.atomic.load (local.get $ref)))
        (loop $get
          (br_if $done (i32.eqz (local.get $refs)))
          (br_if $done (i32.ge_u (i32.and (local.get $refs) (local.get $bits)) (local.get $most)))
          (local.set $found
            (i32.atomic.rmw.cmpxchg
              (local.get $ref) (local.get $refs) (i32.add (local.get $refs) (i32.const 1))))
          (if (i32.ne (local.get $found) (local.get $refs))
            (then
              (local.set $refs (local.get $found))
              (br $get))))
        ;; Only now is it certain that the frame stays: is it still the one that the word names?
        (if (i32.eq (i32.and (local.get $old) (local.get $soft)) (local.get $soft))
          (then (local.set $found (i32.atomic.load (local.get $ptr))))
          (else
            (local.set $found
              (i32.atomic.rmw.cmpxchg
                (local.get $ptr) (local.get $old) (i32.or (local.get $old) (local.get $soft))))))
        (if (i32.ne (local.get $found) (local.get $old))
          (then (return (i32.xor (local.get $n) (i32.const -1)))))
        (local.set $n (i32.add (local.get $n) (i32.const 1)))
        (local.set $ptr (i32.add (local.get $ptr) (i32.const 4)))
        (local.set $want (i32.add (local.get $want) (local.get $step)))
        (local.set $ref (i32.add (local.get $ref) (local.get $stride)))
        (br $word)))
    (local.get $n))

  ;; putRange(ref, count, stride) -> n, or ~n: takes one from each of the counters at ref, ref + stride, ... up to and
  ;; with the first that had no more than one. n is how many were handled; ~n says that the last of them ran out.
  (func (export "putRange") (param $ref i32) (param $count i32) (param $stride i32) (result i32)
    (local $n i32)
    (local $before i32)
    (block $done
      (loop $word
        (br_if $done (i32.eq (local.get $n) (local.get $count)))
        (local.set $n (i32.add (local.get $n) (i32.const 1)))
        (local.set $before (i32.atomic.rmw.sub (local.get $ref) (i32.const 1)))
        (if (i32.le_s (local.get $before) (i32.const 1))
          (then (return (i32.xor (local.get $n) (i32.const -1)))))
        (local.set $ref (i32.add (local.get $ref) (local.get $stride)))
        (br $word)))
    (local.get $n))

  ;; shareRange(src, dst, count, keep, counts, stride, shift, one) -> OR of all words of src that are not valid.
  ;; Copies page-table words: a valid one loses, in both places, all bits but `keep`, and the counter of the frame
  ;; n = word >>> shift, at counts + n * stride, grows by `one`, frame 0 excepted; other words are copied as they are.
  ;; Preconditions: nobody else changes the words of src, and nobody can find dst yet.
  (func (export "shareRange")
    (param $src i32) (param $dst i32) (param $count i32) (param $keep i32)
    (param $counts i32) (param $stride i32) (param $shift i32) (param $one i32) (result i32)
    (local $others i32)
    (local $word i32)
    (local $frame i32)
    (block $done
      (br_if $done (i32.eqz (local.get $count)))
      (loop $next
        (local.set $word (i32.atomic.load (local.get $src)))
        (if (i32.and (local.get $word) (i32.const 1))
          (then
            (local.set $frame
              (i32.mul (i32.shr_u (local.get $word) (local.get $shift)) (local.get $stride)))
            (if (local.get $frame)
              (then
                (drop (i32.atomic.rmw.add (i32.add (local.get $counts) (local.get $frame)) (local.get $one)))))
            (if (i32.and (local.get $word) (i32.xor (local.get $keep) (i32.const -1)))
              (then
                (local.set $word (i32.and (local.get $word) (local.get $keep)))
                (i32.atomic.store (local.get $src) (local.get $word)))))
          (else (local.set $others (i32.or (local.get $others) (local.get $word)))))
        (i32.store (local.get $dst) (local.get $word))
        (local.set $src (i32.add (local.get $src) (i32.const 4)))
        (local.set $dst (i32.add (local.get $dst) (i32.const 4)))
        (local.set $count (i32.sub (local.get $count) (i32.const 1)))
        (br_if $next (local.get $count))))
    (local.get $others))

  ;; heldRange(ptr, count, counts, stride, shift, bits) -> 1 if the frame n of a valid word (word >>> shift, frame 0 excepted)
  ;; has one of `bits` in its counter, at counts + n * stride; else 0.
  (func (export "heldRange")
    (param $ptr i32) (param $count i32) (param $counts i32) (param $stride i32) (param $shift i32) (param $bits i32)
    (result i32)
    (local $word i32)
    (local $frame i32)
    (block $done
      (br_if $done (i32.eqz (local.get $count)))
      (loop $next
        (local.set $word (i32.atomic.load (local.get $ptr)))
        (if (i32.and (local.get $word) (i32.const 1))
          (then
            (local.set $frame
              (i32.mul (i32.shr_u (local.get $word) (local.get $shift)) (local.get $stride)))
            (if (local.get $frame)
              (then
                (if
                  (i32.and
                    (i32.atomic.load (i32.add (local.get $counts) (local.get $frame)))
                    (local.get $bits))
                  (then (return (i32.const 1))))))))
        (local.set $ptr (i32.add (local.get $ptr) (i32.const 4)))
        (local.set $count (i32.sub (local.get $count) (i32.const 1)))
        (br_if $next (local.get $count))))
    (i32.const 0))

  ;; takeRange(ptr, count, keep, busy, wait, out) -> n, or ~n.
  ;; Every word whose bit 0 (valid) is set becomes (old & keep) | busy, by compare-exchange, and what it was goes to the
  ;; word of `out` with the same number; there is 0 for a word that was left alone. n is how many were taken; ~n says that
  ;; a word without the valid bit had the bit `wait`. `out` belongs to the caller: plain stores.
  (func (export "takeRange")
    (param $ptr i32) (param $count i32) (param $keep i32) (param $busy i32) (param $wait i32) (param $out i32)
    (result i32)
    (local $n i32)
    (local $old i32)
    (local $found i32)
    (local $blocked i32)
    (block $done
      (br_if $done (i32.eqz (local.get $count)))
      (loop $word
        (local.set $old (i32.atomic.load (local.get $ptr)))
        (block $next
          (loop $retry
            (if (i32.eqz (i32.and (local.get $old) (i32.const 1)))
              (then
                (local.set $blocked
                  (i32.or (local.get $blocked) (i32.and (local.get $old) (local.get $wait))))
                (local.set $old (i32.const 0))
                (br $next)))
            (local.set $found
              (i32.atomic.rmw.cmpxchg
                (local.get $ptr)
                (local.get $old)
                (i32.or (i32.and (local.get $old) (local.get $keep)) (local.get $busy))))
            (if (i32.ne (local.get $found) (local.get $old))
              (then
                (local.set $old (local.get $found))
                (br $retry))))
          (local.set $n (i32.add (local.get $n) (i32.const 1))))
        (i32.store (local.get $out) (local.get $old))
        (local.set $out (i32.add (local.get $out) (i32.const 4)))
        (local.set $ptr (i32.add (local.get $ptr) (i32.const 4)))
        (local.set $count (i32.sub (local.get $count) (i32.const 1)))
        (br_if $word (local.get $count))))
    (if (local.get $blocked)
      (then (return (i32.xor (local.get $n) (i32.const -1)))))
    (local.get $n))

  ;; dropRange(ptr, olds, count, shift, mask, want, stride, flags, dirty, counts, one) -> n.
  ;; For each word of `olds` that is not 0, as takeRange() left them: the word of ptr with the same number becomes 0, and
  ;; counter of the frame (old >>> shift) loses `one`, but for frame 0; it gets the bits `dirty` first if
  ;; (old & mask) == want. Its words lie at flags and counts, `stride` bytes further for each frame. The frames whose counters
  ;; came to 0, n of them, are listed at the beginning of `olds`.
  (func (export "dropRange")
    (param $ptr i32) (param $olds i32) (param $count i32) (param $shift i32) (param $mask i32) (param $want i32)
    (param $stride i32) (param $flags i32) (param $dirty i32) (param $counts i32) (param $one i32) (result i32)
    (local $n i32)
    (local $list i32)
    (local $old i32)
    (local $pfn i32)
    (local $at i32)
    (local.set $list (local.get $olds))
    (block $done
      (br_if $done (i32.eqz (local.get $count)))
      (loop $word
        (block $next
          (br_if $next (i32.eqz (local.tee $old (i32.load (local.get $olds)))))
          (i32.atomic.store (local.get $ptr) (i32.const 0))
          (br_if $next (i32.eqz (local.tee $pfn (i32.shr_u (local.get $old) (local.get $shift)))))
          (local.set $at (i32.mul (local.get $pfn) (local.get $stride)))
          (if (i32.eq (i32.and (local.get $old) (local.get $mask)) (local.get $want))
            (then
              (drop (i32.atomic.rmw.or (i32.add (local.get $flags) (local.get $at)) (local.get $dirty)))))
          (br_if $next
            (i32.gt_s
              (i32.atomic.rmw.sub (i32.add (local.get $counts) (local.get $at)) (local.get $one))
              (local.get $one)))
          (i32.store (i32.add (local.get $list) (i32.shl (local.get $n) (i32.const 2))) (local.get $pfn))
          (local.set $n (i32.add (local.get $n) (i32.const 1))))
        (local.set $ptr (i32.add (local.get $ptr) (i32.const 4)))
        (local.set $olds (i32.add (local.get $olds) (i32.const 4)))
        (local.set $count (i32.sub (local.get $count) (i32.const 1)))
        (br_if $word (local.get $count))))
    (local.get $n))

  ;; Sets bits of a word of the bitmap at `free`, after they were cleared in that at `zero`; returns those that were set.
  (func $publish (param $free i32) (param $zero i32) (param $bits i32) (result i32)
    (if (i32.and (i32.atomic.load (local.get $zero)) (local.get $bits))
      (then
        (drop
          (i32.atomic.rmw.and (local.get $zero) (i32.xor (local.get $bits) (i32.const -1))))))
    (i32.and (i32.atomic.rmw.or (local.get $free) (local.get $bits)) (local.get $bits)))

  ;; freeRange(list, count, stride, a, b, c, free, zero) -> 0, or a frame that was free before.
  ;; For each frame of the list: the words at a, b and c, `stride` bytes further for each frame, become 0 (plain: the frame
  ;; is nobody's); its bit in the bitmap at `zero` becomes 0, then that at `free` 1. Frames that follow in the list and share a
  ;; word of the bitmap are set together.
  (func (export "freeRange")
    (param $list i32) (param $count i32) (param $stride i32) (param $a i32) (param $b i32) (param $c i32)
    (param $free i32) (param $zero i32) (result i32)
    (local $pfn i32)
    (local $at i32)
    (local $group i32)    ;; byte of the bitmaps' word that `bits` belong to
    (local $bits i32)
    (local $twice i32)    ;; bits that were set before
    (local $wrong i32)
    (loop $next
      (if (local.get $count)
        (then
          (local.set $pfn (i32.load (local.get $list)))
          (local.set $at (i32.mul (local.get $pfn) (local.get $stride)))
          (i32.store (i32.add (local.get $a) (local.get $at)) (i32.const 0))
          (i32.store (i32.add (local.get $b) (local.get $at)) (i32.const 0))
          (i32.store (i32.add (local.get $c) (local.get $at)) (i32.const 0))
          (local.set $at (i32.shl (i32.shr_u (local.get $pfn) (i32.const 5)) (i32.const 2)))))
      (if
        (i32.and
          (i32.ne (local.get $bits) (i32.const 0))
          (i32.or (i32.eqz (local.get $count)) (i32.ne (local.get $at) (local.get $group))))
        (then
          (local.set $twice
            (call $publish
              (i32.add (local.get $free) (local.get $group))
              (i32.add (local.get $zero) (local.get $group))
              (local.get $bits)))
          (if (local.get $twice)
            (then
              (local.set $wrong
                (i32.add (i32.shl (local.get $group) (i32.const 3)) (i32.ctz (local.get $twice))))))
          (local.set $bits (i32.const 0))))
      (if (local.get $count)
        (then
          (local.set $group (local.get $at))
          (local.set $bits
            (i32.or (local.get $bits) (i32.shl (i32.const 1) (i32.and (local.get $pfn) (i32.const 31)))))
          (local.set $list (i32.add (local.get $list) (i32.const 4)))
          (local.set $count (i32.sub (local.get $count) (i32.const 1)))
          (br $next))))
    (local.get $wrong))

  ;; dropTags(table, mask, first, count, far, none): tag n & mask becomes `none` if it is n or n | far, for `count` numbers n
  ;; from `first` on. Pairs (tag, base) of a table that only this agent writes. Others load tags atomically, and take `none`
  ;; for a promise: what was stored through the entry before is visible to them. The fence in front gives that to all the
  ;; plain stores behind it: no tag becomes visible before a store that came before the fence. That one may become visible
  ;; late costs the others a needless wait only; what tells them that the flush is done is an atomic store that follows.
  (func (export "dropTags")
    (param $table i32) (param $mask i32) (param $first i32) (param $count i32) (param $far i32) (param $none i32)
    (local $at i32)
    (local $tag i32)
    (atomic.fence)
    (block $done
      (br_if $done (i32.eqz (local.get $count)))
      (loop $word
        (local.set $at
          (i32.add
            (local.get $table)
            (i32.shl (i32.and (local.get $first) (local.get $mask)) (i32.const 3))))
        (local.set $tag (i32.load (local.get $at)))
        (if
          (i32.or
            (i32.eq (local.get $tag) (local.get $first))
            (i32.eq (local.get $tag) (i32.or (local.get $first) (local.get $far))))
          (then (i32.store (local.get $at) (local.get $none))))
        (local.set $first (i32.add (local.get $first) (i32.const 1)))
        (local.set $count (i32.sub (local.get $count) (i32.const 1)))
        (br_if $word (local.get $count)))))
)
