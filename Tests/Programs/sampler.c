// Samples the resident anonymous memory of all descendants of a process, every 2 ms until none is left or the
// process has ended, and prints the result as JSON.
//   sampler [OPTIONS] --root PID       descendants of PID (not PID itself)
//   sampler [OPTIONS] -- CMD [ARG...]  descendants of CMD; the exit status is CMD's
// With --self the process itself counts as well.
#include "common.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

enum { MOST_PROCESSES = 1024 };

static pid_t processes[MOST_PROCESSES];
static const char *excluded = "vswapd";
static bool pss, list, itself;

static ssize_t slurp(char *text, size_t size, const char *format, int a, int b) {
  char path[96];
  snprintf(path, sizeof path, format, a, b);
  int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return -1;
  size_t used = 0;
  ssize_t n;
  while (used < size - 1 && (n = read(file, text + used, size - 1 - used)) > 0) used += (size_t)n;
  close(file);
  text[used] = 0;
  return (ssize_t)used;
}

/// The descendants of `root`. Every thread may have children of its own.
static int descendants(pid_t root) {
  int count = 0;
  for (int next = -1; next < count; next++) {
    pid_t parent = next < 0 ? root : processes[next];
    char tasks[64];
    snprintf(tasks, sizeof tasks, "/proc/%d/task", parent);
    static char text[1 << 14], entries[1 << 14];
    int directory = open(tasks, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0) continue;
    ssize_t size;
    while ((size = getdents64(directory, entries, sizeof entries)) > 0)
      for (char *at = entries; at < entries + size; at += *(uint16_t *)(void *)(at + 16)) {
        int task = atoi(at + 19);
        if (task <= 0 || slurp(text, sizeof text, "/proc/%d/task/%d/children", parent, task) <= 0) continue;
        for (char *word = strtok(text, " \n"); word && count < MOST_PROCESSES; word = strtok(NULL, " \n")) processes[count++] = atoi(word);
      }
    close(directory);
  }
  return count;
}

static bool is_excluded(pid_t pid) {
  static struct {
    pid_t pid;
    bool excluded;
  } known[MOST_PROCESSES];
  char name[64];
  unsigned slot = (unsigned)pid % MOST_PROCESSES;
  if (!*excluded) return false;
  if (known[slot].pid == pid && known[slot].excluded) return true;
  if (slurp(name, sizeof name, "/proc/%d/comm", pid, 0) <= 0) return false;
  name[strcspn(name, "\n")] = 0;
  known[slot].pid = pid;
  known[slot].excluded = strcmp(name, excluded) == 0;
  return known[slot].excluded;
}

static uint64_t resident(pid_t pid) {
  static char text[1 << 13];
  if (pss) {
    if (slurp(text, sizeof text, "/proc/%d/smaps_rollup", pid, 0) <= 0) return 0;
    char *at = strstr(text, "Pss_Anon:");
    return at ? strtoull(at + 9, NULL, 10) * 1024 : 0;
  }
  unsigned long long total, all, shared;
  if (slurp(text, sizeof text, "/proc/%d/statm", pid, 0) <= 0 || sscanf(text, "%llu %llu %llu", &total, &all, &shared) != 3) return 0;
  return all > shared ? (all - shared) * PAGE_BYTES : 0;
}

static volatile sig_atomic_t told_to_stop;
static void on_stop(int signal) {
  (void)signal;
  told_to_stop = 1;
}

int main(int argc, char **argv) {
  uint64_t limit = 0, interval_us = 2000;
  pid_t root = 0, child = 0;
  const char *value, *output = NULL;
  int i = 1, status = 0;
  for (; i < argc && strcmp(argv[i], "--") != 0; i++) {
    if ((value = option_value(argc, argv, &i, "--root"))) root = (pid_t)parse_number("--root", value);
    else if ((value = option_value(argc, argv, &i, "--limit"))) limit = parse_number("--limit", value);
    else if ((value = option_value(argc, argv, &i, "--interval-us"))) interval_us = parse_number("--interval-us", value);
    else if ((value = option_value(argc, argv, &i, "--exclude"))) excluded = value;
    else if ((value = option_value(argc, argv, &i, "--output"))) output = value;
    else if (strcmp(argv[i], "--pss") == 0) pss = true;
    else if (strcmp(argv[i], "--list") == 0) list = true;
    else if (strcmp(argv[i], "--self") == 0) itself = true;
    else
      die("usage: sampler [--limit BYTES] [--pss] [--interval-us N] [--exclude NAME] [--output FILE] [--self] (--root PID | -- CMD [ARG...])");
  }
  if (i + 1 < argc) {
    if ((errno = posix_spawnp(&child, argv[i + 1], NULL, NULL, argv + i + 1, environ))) die("%s: %s", argv[i + 1], strerror(errno));
    root = child;
  }
  if (root <= 0) die("--root PID or a command is needed");
  signal(SIGTERM, on_stop);
  signal(SIGINT, on_stop);

  uint64_t samples = 0, most = 0, sum = 0, over_limit = 0, over_allowed = 0, start = now_ns(), last = start, gap = 0, most_at = 0;
  uint64_t slack = limit / 20 > 16 << 20 ? limit / 20 : 16 << 20, allowed = limit + slack;
  int processes_most = 0;
  while (!told_to_stop) {
    if (child ? waitpid(child, &status, WNOHANG) == child : kill(root, 0) < 0 && errno == ESRCH) break;
    int count = descendants(root), counted = 0;
    uint64_t bytes = itself ? resident(root) : 0;
    for (int p = 0; p < count; p++)
      if (!is_excluded(processes[p])) {
        bytes += resident(processes[p]);
        counted++;
      }
    uint64_t now = now_ns();
    if (list) dprintf(2, "%.3f %llu\n", (double)(now - start) / 1e9, (unsigned long long)bytes);
    samples++;
    sum += bytes;
    if (bytes > most) {
      most = bytes;
      most_at = now - start;
    }
    if (counted > processes_most) processes_most = counted;
    if (limit && bytes > limit) over_limit++;
    if (limit && bytes > allowed) over_allowed++;
    if (samples > 1 && now - last > gap) gap = now - last;
    last = now;
    uint64_t used = (now_ns() - start) % (interval_us * 1000);
    struct timespec pause = {0, (long)(interval_us * 1000 - used)};
    nanosleep(&pause, NULL);
  }
  int file = output ? open(output, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644) : 1;
  if (file < 0) die("%s: %s", output, strerror(errno));
  dprintf(file,
          "{\"samples\": %llu, \"seconds\": %.3f, \"max_bytes\": %llu, \"max_at_seconds\": %.3f, \"mean_bytes\": %llu, \"limit_bytes\": %llu, "
          "\"allowed_bytes\": %llu, \"over_limit_samples\": %llu, \"over_allowed_samples\": %llu, \"max_processes\": %d, \"longest_gap_ms\": %.1f}\n",
          (unsigned long long)samples, (double)(now_ns() - start) / 1e9, (unsigned long long)most, (double)most_at / 1e9,
          (unsigned long long)(samples ? sum / samples : 0), (unsigned long long)limit, (unsigned long long)(limit ? allowed : 0),
          (unsigned long long)over_limit, (unsigned long long)over_allowed, processes_most, (double)gap / 1e6);
  if (child && WIFSIGNALED(status)) return 128 + WTERMSIG(status);
  return child ? WEXITSTATUS(status) : 0;
}
