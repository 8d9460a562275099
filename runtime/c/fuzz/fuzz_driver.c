/* Mutates seeds for fuzz_cats.c where there is no libFuzzer; the same number gives the same mutations.
 *
 *     fuzz_driver FOLDER RUNS [SEED]
 *
 * Stops with the input in crash-input where one fails; one that takes more than 20 seconds of CPU time, or 10 minutes of
 * waiting, counts as a hang.
 */
#define _DEFAULT_SOURCE
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *count, char ***arguments);

#define LARGEST ((size_t)1 << 16)
#define SEEDS 64
#define CPU_SECONDS 20
#define SECONDS 600 /* on a busy machine, or while stopped, time goes by without work */

static struct {
  uint8_t data[LARGEST];
  size_t size;
} seeds[SEEDS];
static uint64_t state;

/* splitmix64 */
static uint64_t next(void) {
  uint64_t z = state += 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

static size_t below(size_t limit) { return limit ? (size_t)(next() % limit) : 0; }

static size_t mutate(uint8_t *data, size_t size, const uint8_t *other, size_t other_size) {
  static const uint8_t telling[] = {0, 1, 0x7F, 0x80, 0xFF, '"', '{', '[', ',', 'e', '-', '9', '\\'};
  size_t at = 1 + below(size - 1), length = 1 + below(16), from = 1 + below(other_size - 1);
  if (length > size - at) length = size - at;
  switch (next() % 8) {
    case 0:
      data[at] ^= (uint8_t)(1u << below(8));
      break;
    case 1:
      data[at] = (uint8_t)next();
      break;
    case 2:
      data[at] = telling[below(sizeof telling)];
      break;
    case 3: /* cut out */
      memmove(data + at, data + at + length, size - at - length);
      return size - length;
    case 4: /* repeat */
      if (size + length > LARGEST) break;
      memmove(data + at + length, data + at, size - at);
      return size + length;
    case 5: /* from another seed */
      if (length > other_size - from) length = other_size - from;
      memcpy(data + at, other + from, length);
      break;
    case 6: /* from elsewhere in this one, so that names repeat */
      memmove(data + at, data + 1 + below(size - length), length);
      break;
    default:
      return at + below(size - at) + 1 > 2 ? at + 1 : size; /* cut off */
  }
  return size;
}

static size_t load(const char *folder) {
  char path[4096];
  size_t count = 0;
  DIR *listing = opendir(folder);
  if (!listing) return 0;
  for (struct dirent *item; (item = readdir(listing)) && count < SEEDS;) {
    snprintf(path, sizeof path, "%s/%s", folder, item->d_name);
    FILE *file = item->d_name[0] == '.' ? NULL : fopen(path, "rb");
    if (!file) continue;
    seeds[count].size = fread(seeds[count].data, 1, LARGEST, file);
    fclose(file);
    if (seeds[count].size > 2) count++;
  }
  closedir(listing);
  return count;
}

/* Ends the process with a signal after so many seconds; 0 takes the limit away. */
static void limit_time(long cpu, unsigned wall) {
  const struct itimerval limit = {{0, 0}, {cpu, 0}};
  setitimer(ITIMER_PROF, &limit, NULL);
  alarm(wall);
}

int main(int count, char **arguments) {
  static uint8_t work[LARGEST];
  long counts[5] = {0, 0, 0, 0, 0};
  size_t known = count > 2 ? load(arguments[1]) : 0;
  if (!known) {
    fprintf(stderr, "usage: %s FOLDER-OF-SEEDS RUNS [SEED]\n", arguments[0]);
    return 2;
  }
  LLVMFuzzerInitialize(&count, &arguments);
  long runs = atol(arguments[2]);
  state = count > 3 ? (uint64_t)atoll(arguments[3]) : 1;
  for (long run = 0; run < runs; run++) {
    size_t seed = below(known), other = below(known), size = seeds[seed].size;
    memcpy(work, seeds[seed].data, size);
    for (size_t times = run < (long)known ? 0 : 1 + below(8); times && size > 2; times--)
      size = mutate(work, size, seeds[other].data, seeds[other].size);
    FILE *kept = fopen("crash-input", "wb");
    if (kept) {
      fwrite(work, 1, size, kept);
      fclose(kept);
    }
    uint8_t *exact = malloc(size); /* exactly as long, so that reading beyond is seen */
    if (!exact) return 1;
    memcpy(exact, work, size);
    limit_time(CPU_SECONDS, SECONDS);
    LLVMFuzzerTestOneInput(exact, size);
    limit_time(0, 0);
    counts[work[0] % 5]++;
    free(exact);
  }
  remove("crash-input");
  printf("%ld runs: %ld metadata, %ld models, %ld images, %ld arguments, %ld split models\n", runs, counts[0], counts[1],
         counts[2], counts[3], counts[4]);
  return 0;
}
