// What the programs of this folder have in common.
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <time.h>

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static double now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1e9 + t.tv_nsec;
}

// Gives memory to a KVM virtual machine, which registers a notifier. It lives as long as the process; it never runs.
static void give_to_machine(char *memory, size_t bytes) {
  int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  if (kvm < 0) fail("/dev/kvm");
  int machine = ioctl(kvm, KVM_CREATE_VM, 0);
  if (machine < 0) fail("KVM_CREATE_VM");
  struct kvm_userspace_memory_region region = {
      .slot = 0,
      .guest_phys_addr = 0,
      .memory_size = bytes,
      .userspace_addr = (uint64_t)(uintptr_t)memory,
  };
  if (ioctl(machine, KVM_SET_USER_MEMORY_REGION, &region) != 0) fail("KVM_SET_USER_MEMORY_REGION");
}
