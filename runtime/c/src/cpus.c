/* See cpus.h; the rules are those of cats/runtime/hardware.py. */
#define _GNU_SOURCE
#include "cpus.h"

#include <sched.h>
#include <stdio.h>
#include <unistd.h>

#define CPU_FOLDER "/sys/devices/system/cpu"

/* CPUs that the quota of the control group amounts to, rounded up; 0 without a quota. */
static long quota(void) {
  long long share = -1, period = 0;
  FILE *file = fopen("/sys/fs/cgroup/cpu.max", "r");
  if (file) {
    if (fscanf(file, "%lld %lld", &share, &period) != 2) share = -1; /* "max" */
    fclose(file);
  } else {
    file = fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "r");
    if (file && fscanf(file, "%lld", &share) != 1) share = -1;
    if (file) fclose(file);
    file = fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "r");
    if (file && fscanf(file, "%lld", &period) != 1) period = 0;
    if (file) fclose(file);
  }
  return share > 0 && period > 0 ? (long)((share + period - 1) / period) : 0;
}

/* CPUs that are the first of their core, the machine's logical ones where the system does not tell. */
static long physical_cores(void) {
  long logical = sysconf(_SC_NPROCESSORS_CONF), cores = 0;
  for (long cpu = 0; cpu < logical; cpu++) {
    char path[128];
    long first = -1;
    snprintf(path, sizeof path, CPU_FOLDER "/cpu%ld/topology/thread_siblings_list", cpu);
    FILE *file = fopen(path, "r");
    if (file && fscanf(file, "%ld", &first) != 1) first = -1;
    if (file) fclose(file);
    cores += first == cpu;
  }
  return cores ? cores : logical;
}

int cats_limited_cpus(void) {
  cpu_set_t mask;
  long cores = physical_cores(), usable = cores, limit = quota();
  if (sched_getaffinity(0, sizeof mask, &mask) == 0) usable = CPU_COUNT(&mask); /* fails beyond 1024 CPUs */
  if (limit && limit < usable) usable = limit;
  return usable > 0 && usable < cores ? (int)usable : 0;
}
