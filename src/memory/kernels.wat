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

  ;; getRange(ptr, count, mask, want, step, soft, ref, stride) -> n, or ~n.
  ;; Takes a reference to the frame of each page-table word from ptr on, as long as (word & mask) == want, where want
  ;; grows by `step` from word to word; the counters of the frames are the words at ref, ref + stride, ... Sets the bits
  ;; `soft` in each word. Stops at the first word that does not match, whose frame is free, or that changes meanwhile.
  ;; n is how many have been taken; ~n says that the frame of the n-th word has one reference too many, which the
  ;; caller gives back: the word changed after it was taken.
  (func (export "getRange")
    (param $ptr i32) (param $count i32) (param $mask i32) (param $want i32) (param $step i32) (param $soft i32)
    (param $ref i32) (param $stride i32) (result i32)
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

  ;; shareRange(src, dst, count, keep, ref, map, stride, shift) -> OR of all words of src that are not valid.
  ;; Copies page-table words: a valid one loses, in both places, all bits but `keep`, and the two counters of the frame
  ;; n = word >>> shift, at ref + n * stride and map + n * stride, grow by one, frame 0 excepted; other words are copied as
  ;; they are. Preconditions: nobody else changes the words of src, and nobody can find dst yet.
  (func (export "shareRange")
    (param $src i32) (param $dst i32) (param $count i32) (param $keep i32)
    (param $ref i32) (param $map i32) (param $stride i32) (param $shift i32) (result i32)
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
                (drop (i32.atomic.rmw.add (i32.add (local.get $ref) (local.get $frame)) (i32.const 1)))
                (drop (i32.atomic.rmw.add (i32.add (local.get $map) (local.get $frame)) (i32.const 1)))))
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
)
