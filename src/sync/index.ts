/** sync/: locks and grace periods over words of the arena. */
export { assertNoLocks, LockRank, lockdepAcquire, lockdepRelease } from "./lockOrder.ts";
export { lockdepMap, lockdepWaits } from "./lockdep.ts";
export { lockMutexOp, MUTEX_WORDS, tryLockMutex, unlockMutex } from "./mutex.ts";
export {
  adoptRead,
  isWriteLocked,
  lockReadOp,
  lockWriteOp,
  passRead,
  reapRwSem,
  rwSemWords,
  tryLockRead,
  tryLockWrite,
  unlockRead,
  unlockWrite,
} from "./rwsem.ts";
export { beginWrite, endWrite, readChanged, readSequence } from "./seqcount.ts";
export { lockSpin, unlockSpin } from "./spinlock.ts";
export { reapSrcu, srcuReadLock, srcuReadUnlock, srcuWords, synchronizeSrcuOp } from "./srcu.ts";
export { Mutex, RwSem } from "./shared.ts";
