/*
 * The interval-notifier protocol around one page, as the scenario "a fill beside a zap" has it: a driver that fills a
 * device's table, an operation that takes the page away, and the device. For Spin, of which the row `check` says how it
 * fares beside the checker.
 */
byte seq = 2;         /* of the space: odd while a range is open that somebody has been told of */
byte intervalSeq = 1; /* what the callback was given last */
byte entry = 1;       /* the page table: a frame, 0 for none */
byte table = 0;       /* the device's */
bool free[3];         /* frames 1 and 2 */

init {
  free[2] = true;
  atomic { run driver(); run mm(); run hardware() }
}

proctype driver() {
  byte began, frame;
  began = intervalSeq;                      /* readBegin() */
  !(began == seq && (seq & 1) == 1);
  atomic {                                  /* the fault */
    if
    :: entry != 0 -> frame = entry
    :: else ->
      if
      :: free[1] -> frame = 1
      :: else -> frame = 2
      fi;
      free[frame] = false;
      entry = frame
    fi
  }
  atomic {                                  /* readRetry(), and the install in the same step */
    if
    :: intervalSeq == began -> table = frame
    :: else
    fi
  }
}

proctype mm() {
  byte frame;
  seq = seq | 1;                            /* start */
  atomic { intervalSeq = seq; table = 0 }   /* the callback */
  atomic { frame = entry; entry = 0 }
  free[frame] = true;
  seq++                                     /* end */
}

proctype hardware() {
  byte reads;
  do
  :: reads < 2 -> atomic { assert(table == 0 || !free[table]); reads++ }
  :: else -> break
  od
}
