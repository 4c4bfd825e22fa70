// What one MMU notifier costs Linux: nanoseconds of a madvise(MADV_DONTNEED) of a page that was never touched, which
// is a system call, a walk to the vma and the notifiers, and nothing else.
//   kvmNotifier none        no notifier is registered
//   kvmNotifier elsewhere   a KVM virtual machine is, whose memory lies elsewhere
//   kvmNotifier covering    its memory covers the page
// Prints the figure; prints what failed to standard error, with exit status 1.
#define _GNU_SOURCE
#include <string.h>
#include <sys/mman.h>
#include "common.h"

enum { PAGE = 4096, PAGES = 4096, CALLS = 20000, WARM_UP_CALLS = 2000 };

static char *map_memory(void) {
  size_t bytes = (size_t)PAGES * PAGE;
  char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) fail("mmap");
  madvise(memory, bytes, MADV_NOHUGEPAGE);
  return memory;
}

static void drop(char *page, int calls) {
  for (int n = 0; n < calls; n++) {
    if (madvise(page, PAGE, MADV_DONTNEED) != 0) fail("madvise");
  }
}

int main(int argc, char **argv) {
  const char *what = argc > 1 ? argv[1] : "none";
  char *memory = map_memory();
  char *other = map_memory();
  if (strcmp(what, "elsewhere") == 0) give_to_machine(other, (size_t)PAGES * PAGE);
  if (strcmp(what, "covering") == 0) give_to_machine(memory, (size_t)PAGES * PAGE);
  char *page = memory + (size_t)PAGES / 2 * PAGE;
  page[PAGE] = 1; // a neighbour: the page tables above ours exist, as in a process at work
  drop(page, WARM_UP_CALLS);
  double begin = now_ns();
  drop(page, CALLS);
  printf("%.2f\n", (now_ns() - begin) / CALLS);
  return 0;
}
