// What operations on memory cost Linux, in nanoseconds: mmuOperations NOTIFIER OPERATION [ARGUMENT]
//   NOTIFIER   covering: a KVM virtual machine is registered, whose memory covers all that is touched; none: it is not
//   OPERATION  anon-fault          a first write to a page of private memory
//              cow-fault           a first write to a page that a child shares, which lives
//              file-fault FILE     a read of each page of a mapped file in order, which the page cache has
//              mprotect PAGES      to read-only and back, the mean of the two
//              remap [touch]       munmap of one page and mmap in its place, with "touch" a write to it too
//              dontneed PAGES      madvise(MADV_DONTNEED) of pages that are there
//              fork MIB            fork(2) with that much private memory that is there; the first write after it
//              mix OPERATIONS      a list as lib/operationMix.mjs has it, the whole of it
// Prints the figures on one line; prints what failed to standard error, with exit status 1.
#define _GNU_SOURCE
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "common.h"

enum { PAGE = 4096, PAGES = 8192, CALLS = 10000, LONG_CALLS = 200, WARM_UP_CALLS = 500 };
enum { MIX_PAGES = 64, MIX_LIMIT = 256, MIX_ROUNDS = 100, MIX_WARM_UP_ROUNDS = 20 };

static int covering;

static char *map_at(char *at, size_t bytes) {
  int fixed = at ? MAP_FIXED : 0;
  char *memory = mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | fixed, -1, 0);
  if (memory == MAP_FAILED) fail("mmap");
  return memory;
}

// Private memory without huge pages, under the machine.
static char *subject(size_t pages) {
  char *memory = map_at(NULL, pages * PAGE);
  if (madvise(memory, pages * PAGE, MADV_NOHUGEPAGE) != 0) fail("madvise");
  if (covering) give_to_machine(memory, pages * PAGE);
  return memory;
}

static void touch(char *memory, size_t pages) {
  for (size_t n = 0; n < pages; n++) ((volatile char *)memory)[n * PAGE] = 1;
}

static void protect(char *at, size_t bytes, int prot) {
  if (mprotect(at, bytes, prot) != 0) fail("mprotect");
}

static void advise(char *at, size_t bytes, int advice) {
  if (madvise(at, bytes, advice) != 0) fail("madvise");
}

static void unmap(char *at, size_t bytes) {
  if (munmap(at, bytes) != 0) fail("munmap");
}

static void anon_fault(void) {
  char *memory = subject(PAGES);
  touch(memory, PAGES);
  advise(memory, (size_t)PAGES * PAGE, MADV_DONTNEED);
  double begin = now_ns();
  touch(memory, PAGES);
  printf("%.2f\n", (now_ns() - begin) / PAGES);
}

// A child that waits for the end of its parent.
static pid_t fork_waiting(double *ns) {
  int ends[2];
  if (pipe(ends) != 0) fail("pipe");
  double begin = now_ns();
  pid_t child = fork();
  *ns = now_ns() - begin;
  if (child < 0) fail("fork");
  if (child == 0) {
    char byte;
    close(ends[1]);
    _exit(read(ends[0], &byte, 1) < 0);
  }
  close(ends[0]);
  return child;
}

static void end_child(pid_t child) {
  kill(child, SIGKILL);
  if (waitpid(child, NULL, 0) != child) fail("waitpid");
}

static void cow_fault(void) {
  char *memory = subject(PAGES);
  touch(memory, PAGES);
  double ignored;
  pid_t child = fork_waiting(&ignored);
  double begin = now_ns();
  touch(memory, PAGES);
  double ns = now_ns() - begin;
  end_child(child);
  printf("%.2f\n", ns / PAGES);
}

static void file_fault(const char *path) {
  int fd = open(path, O_RDONLY);
  struct stat status;
  if (fd < 0 || fstat(fd, &status) != 0) fail(path);
  size_t pages = status.st_size / PAGE;
  // The machine's memory must be writable; the mapping that replaces it need not be.
  char *memory = subject(pages);
  if (mmap(memory, pages * PAGE, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) fail("mmap");
  volatile char sum = 0;
  double begin = now_ns();
  for (size_t n = 0; n < pages; n++) sum ^= memory[n * PAGE];
  printf("%.2f\n", (now_ns() - begin) / pages);
}

static void mprotect_pages(size_t pages) {
  char *memory = subject(PAGES);
  touch(memory, PAGES);
  // Inside of a mapping, which is cut and merged again.
  char *at = memory + (size_t)PAGES / 4 * PAGE;
  int calls = pages > 8 ? LONG_CALLS : CALLS;
  double begin = 0;
  for (int n = -WARM_UP_CALLS; n < calls; n++) {
    if (n == 0) begin = now_ns();
    protect(at, pages * PAGE, PROT_READ);
    protect(at, pages * PAGE, PROT_READ | PROT_WRITE);
  }
  printf("%.2f\n", (now_ns() - begin) / calls / 2);
}

static void remap(int touched) {
  char *at = subject(3) + PAGE;
  double begin = 0;
  for (int n = -WARM_UP_CALLS; n < CALLS; n++) {
    if (n == 0) begin = now_ns();
    unmap(at, PAGE);
    map_at(at, PAGE);
    if (touched) touch(at, 1);
  }
  printf("%.2f\n", (now_ns() - begin) / CALLS);
}

static void dontneed(size_t pages) {
  char *memory = subject(PAGES);
  touch(memory, PAGES);
  char *at = memory + (size_t)PAGES / 4 * PAGE;
  double ns = 0;
  for (int n = 0; n < LONG_CALLS; n++) {
    touch(at, pages);
    double begin = now_ns();
    advise(at, pages * PAGE, MADV_DONTNEED);
    ns += now_ns() - begin;
  }
  printf("%.2f\n", ns / LONG_CALLS);
}

static void fork_mib(size_t mib) {
  size_t pages = mib * (1024 * 1024 / PAGE);
  char *memory = subject(pages);
  touch(memory, pages);
  double fork_ns;
  pid_t child = fork_waiting(&fork_ns);
  double begin = now_ns();
  touch(memory, 1);
  double write_ns = now_ns() - begin;
  end_child(child);
  printf("%.2f %.2f\n", fork_ns, write_ns);
}

enum kind { MAP, UNMAP, READONLY, WRITABLE, DONTNEED, GIVEUP, NOFORK, MOVE, STORE, LOAD, FORK, KINDS };

static const char *const KIND_NAMES[KINDS] = {"map",    "unmap", "readonly", "writable", "dontneed", "giveup",
                                              "nofork", "move",  "store",    "load",     "fork"};

struct operation {
  enum kind kind;
  size_t at, pages, to;
};

static void perform(char *window, const struct operation *o) {
  char *at = window + o->at * PAGE;
  size_t bytes = o->pages * PAGE;
  switch (o->kind) {
  case MAP:
    map_at(at, bytes);
    break;
  case UNMAP:
    unmap(at, bytes);
    break;
  case READONLY:
    protect(at, bytes, PROT_READ);
    break;
  case WRITABLE:
    protect(at, bytes, PROT_READ | PROT_WRITE);
    break;
  case DONTNEED:
    advise(at, bytes, MADV_DONTNEED);
    break;
  case GIVEUP:
    advise(at, bytes, MADV_FREE);
    break;
  case NOFORK:
    advise(at, bytes, MADV_DONTFORK);
    break;
  case MOVE:
    if (mremap(at, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, window + o->to * PAGE) == MAP_FAILED) fail("mremap");
    break;
  case STORE:
    touch(at, o->pages);
    break;
  case LOAD:
    for (size_t n = 0; n < o->pages; n++) (void)((volatile char *)at)[n * PAGE];
    break;
  case FORK: {
    pid_t child = fork();
    if (child < 0) fail("fork");
    if (child == 0) _exit(0);
    if (waitpid(child, NULL, 0) != child) fail("waitpid");
    break;
  }
  case KINDS:
    break;
  }
}

static struct operation parse(const char *word) {
  struct operation o;
  char name[16];
  if (sscanf(word, "%15[a-z]:%zu:%zu:%zu", name, &o.at, &o.pages, &o.to) == 4) {
    for (int kind = 0; kind < KINDS; kind++) {
      o.kind = kind;
      if (strcmp(name, KIND_NAMES[kind]) == 0) return o;
    }
  }
  fprintf(stderr, "not an operation: %s\n", word);
  exit(1);
}

static void mix(char *list) {
  static struct operation operations[MIX_LIMIT];
  int count = 0;
  for (char *word = strtok(list, ";"); word && count < MIX_LIMIT; word = strtok(NULL, ";"))
    operations[count++] = parse(word);
  char *window = subject(MIX_PAGES);
  unmap(window, (size_t)MIX_PAGES * PAGE);
  double begin = 0;
  for (int n = -MIX_WARM_UP_ROUNDS; n < MIX_ROUNDS; n++) {
    if (n == 0) begin = now_ns();
    for (int k = 0; k < count; k++) perform(window, &operations[k]);
  }
  printf("%.2f\n", (now_ns() - begin) / MIX_ROUNDS);
}

int main(int argc, char **argv) {
  if (argc < 3) {
    fprintf(stderr, "usage: mmuOperations covering|none OPERATION [ARGUMENT]\n");
    return 1;
  }
  covering = strcmp(argv[1], "covering") == 0;
  const char *operation = argv[2];
  char *argument = argc > 3 ? argv[3] : "";
  size_t number = strtoul(argument, NULL, 10);
  if (strcmp(operation, "anon-fault") == 0) anon_fault();
  else if (strcmp(operation, "cow-fault") == 0) cow_fault();
  else if (strcmp(operation, "file-fault") == 0) file_fault(argument);
  else if (strcmp(operation, "mprotect") == 0) mprotect_pages(number);
  else if (strcmp(operation, "remap") == 0) remap(strcmp(argument, "touch") == 0);
  else if (strcmp(operation, "dontneed") == 0) dontneed(number);
  else if (strcmp(operation, "fork") == 0) fork_mib(number);
  else if (strcmp(operation, "mix") == 0) mix(argument);
  else {
    fprintf(stderr, "no operation %s\n", operation);
    return 1;
  }
  return 0;
}
