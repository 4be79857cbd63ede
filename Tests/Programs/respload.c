// Loads a redis server: GET and SET of keys drawn by Zipf's law, one request at a time on each connection. Every value that comes
// back is compared with what was stored. With --load each key is written once, which has to be done before each measurement. Without,
// requests are made for --warm and then for --seconds, and what the latter ones took is printed as JSON.
#include "content.h"

#include <math.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>

enum { SOURCES = 256, HEADER = 24, MOST_VALUE = PAGE_BYTES / 2, MOST_CONNECTIONS = 64, BATCH = 64, BUCKETS = 1 << 20 };

/// What a value is made of: HEADER bytes that name key and version, then a slice of one of these pages.
static uint8_t sources[SOURCES][PAGE_BYTES];
static uint64_t keys = 100000, value_bytes = 1024, sets_percent = 10;
/// Per key: the highest version that was sent, and that the server has confirmed.
static uint32_t *sent, *confirmed;
/// Zipf: keys by rank, and the probability of a rank or a lower one.
static uint32_t *by_rank;
static double *cumulated;
/// Number of requests by microseconds; the last one has all that took longer.
static uint32_t took_us[BUCKETS];

typedef struct {
  int descriptor;
  bool setting;
  uint32_t key, version;
  uint64_t start;
  size_t received;
  char reply[MOST_VALUE + 64];
} Connection;

static void write_header(char *to, uint32_t key, uint32_t version) {
  char text[HEADER + 1];
  snprintf(text, sizeof text, "%011u %010u  ", key, version);
  memcpy(to, text, HEADER);
}

static const uint8_t *rest_of(uint32_t key, uint32_t version) {
  uint64_t random = mix64((uint64_t)key << 32 | version);
  return sources[random % SOURCES] + random / SOURCES % (PAGE_BYTES - value_bytes);
}

/// A request in `to`; returns its length.
static size_t put_request(char *to, bool setting, uint32_t key, uint32_t version) {
  size_t length = (size_t)sprintf(to, "*%d\r\n$3\r\n%s\r\n$14\r\nkey:%010u\r\n", setting ? 3 : 2, setting ? "SET" : "GET", key);
  if (!setting) return length;
  length += (size_t)sprintf(to + length, "$%llu\r\n", (unsigned long long)value_bytes);
  write_header(to + length, key, version);
  memcpy(to + length + HEADER, rest_of(key, version), value_bytes - HEADER);
  length += value_bytes;
  memcpy(to + length, "\r\n", 2);
  return length + 2;
}

static void send_all(int descriptor, const char *bytes, size_t count) {
  while (count) {
    ssize_t n = send(descriptor, bytes, count, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) die("send: %s", strerror(errno));
    bytes += n;
    count -= (size_t)n;
  }
}

static size_t receive(int descriptor, char *to, size_t most) {
  for (;;) {
    ssize_t n = recv(descriptor, to, most, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) die("recv: %s", strerror(errno));
    if (n == 0) die("the server has closed the connection");
    return (size_t)n;
  }
}

static int connected(const char *path) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  if (strlen(path) >= sizeof address.sun_path) die("%s: too long", path);
  strcpy(address.sun_path, path);
  int descriptor = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (descriptor < 0 || connect(descriptor, (struct sockaddr *)&address, sizeof address) < 0) die("%s: %s", path, strerror(errno));
  return descriptor;
}

static void load(const char *path) {
  static char requests[BATCH * (MOST_VALUE + 128)], replies[BATCH * 5];
  int descriptor = connected(path);
  for (uint32_t key = 0; key < keys;) {
    size_t length = 0, count = 0, received = 0;
    for (; count < BATCH && key < keys; count++) length += put_request(requests + length, true, key++, 0);
    send_all(descriptor, requests, length);
    while (received < count * 5) received += receive(descriptor, replies + received, count * 5 - received);
    for (size_t i = 0; i < count; i++)
      if (memcmp(replies + i * 5, "+OK\r\n", 5) != 0) die("SET was answered with '%.*s'", (int)received, replies);
  }
  close(descriptor);
}

static void prepare_zipf(double theta, Rng *rng) {
  by_rank = malloc(keys * sizeof *by_rank);
  cumulated = malloc(keys * sizeof *cumulated);
  if (!by_rank || !cumulated) die("no memory");
  double sum = 0;
  for (uint32_t i = 0; i < keys; i++) {
    by_rank[i] = i;
    cumulated[i] = sum += pow(i + 1, -theta);
  }
  for (uint32_t i = 0; i < keys; i++) {
    uint32_t other = i + (uint32_t)rng_below(rng, keys - i), key = by_rank[i];
    by_rank[i] = by_rank[other];
    by_rank[other] = key;
    cumulated[i] /= sum;
  }
}

static uint32_t draw_key(Rng *rng) {
  double wanted = (double)(rng_next(rng) >> 11) / (double)(1ull << 53);
  uint64_t low = 0, high = keys - 1;
  while (low < high) {
    uint64_t middle = (low + high) / 2;
    if (cumulated[middle] < wanted) low = middle + 1;
    else high = middle;
  }
  return by_rank[low];
}

static void ask(Connection *c, Rng *rng) {
  char request[MOST_VALUE + 128];
  c->key = draw_key(rng);
  // One SET of a key at a time: the server may see two of two connections in either order.
  c->setting = rng_below(rng, 100) < sets_percent && sent[c->key] == confirmed[c->key];
  c->version = c->setting ? ++sent[c->key] : confirmed[c->key];
  c->received = 0;
  size_t length = put_request(request, c->setting, c->key, c->version);
  c->start = now_ns();
  send_all(c->descriptor, request, length);
}

/// The value of a GET: of this key, not older than what was confirmed before the request, and whole.
static void check_value(const Connection *c, const char *value) {
  unsigned key, version;
  char text[HEADER + 1] = {0}, expected[HEADER];
  memcpy(text, value, HEADER);
  if (sscanf(text, "%u %u", &key, &version) == 2) {
    write_header(expected, key, version);
    if (key == c->key && version >= c->version && version <= sent[key] && memcmp(text, expected, HEADER) == 0 &&
        memcmp(value + HEADER, rest_of(key, version), value_bytes - HEADER) == 0)
      return;
  }
  die("FAILED: the value of key %u, version %u or later, is wrong: '%s'", c->key, c->version, text);
}

/// Takes what has arrived; true if that was the whole answer, and right.
static bool take_answer(Connection *c) {
  char head[32] = "+OK\r\n";
  if (!c->setting) snprintf(head, sizeof head, "$%llu\r\n", (unsigned long long)value_bytes);
  size_t header = strlen(head), whole = c->setting ? header : header + value_bytes + 2;
  c->received += receive(c->descriptor, c->reply + c->received, sizeof c->reply - c->received);
  size_t known = c->received < header ? c->received : header;
  if (memcmp(c->reply, head, known) != 0 || c->received > whole)
    die("%s of key %u was answered with '%.*s'", c->setting ? "SET" : "GET", c->key, (int)known, c->reply);
  if (c->received < whole) return false;
  if (!c->setting) check_value(c, c->reply + header);
  else confirmed[c->key] = c->version;
  return true;
}

/// Requests on all connections until `end`; those that begin from `from` on count. Returns their number.
static uint64_t run(Connection *connections, uint64_t count, uint64_t from, uint64_t end, Rng *rng) {
  uint64_t counted = 0, open = count;
  int poll = epoll_create1(EPOLL_CLOEXEC);
  if (poll < 0) die("epoll: %s", strerror(errno));
  for (uint64_t i = 0; i < count; i++) {
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = &connections[i]};
    if (epoll_ctl(poll, EPOLL_CTL_ADD, connections[i].descriptor, &event) < 0) die("epoll: %s", strerror(errno));
    ask(&connections[i], rng);
  }
  while (open) {
    struct epoll_event events[MOST_CONNECTIONS];
    int ready = epoll_wait(poll, events, MOST_CONNECTIONS, 60000);
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) die("the server has not answered for a minute");
    for (int i = 0; i < ready; i++) {
      Connection *c = events[i].data.ptr;
      if (!take_answer(c)) continue;
      uint64_t now = now_ns(), us = (now - c->start) / 1000;
      if (c->start >= from) {
        took_us[us < BUCKETS ? us : BUCKETS - 1]++;
        counted++;
      }
      if (now < end) ask(c, rng);
      else open--;
    }
  }
  close(poll);
  return counted;
}

static unsigned percentile(uint64_t count, double fraction) {
  uint64_t below = 0, wanted = (uint64_t)((double)count * fraction);
  for (unsigned us = 0; us < BUCKETS; us++)
    if ((below += took_us[us]) > wanted) return us;
  return BUCKETS - 1;
}

int main(int argc, char **argv) {
  uint64_t seed = 1, seconds = 10, warm = 0, count = 8, theta = 99;
  const char *value, *path = NULL;
  bool loading = false;
  for (int i = 1; i < argc; i++) {
    if ((value = option_value(argc, argv, &i, "--socket"))) path = value;
    else if ((value = option_value(argc, argv, &i, "--keys"))) keys = parse_number("--keys", value);
    else if ((value = option_value(argc, argv, &i, "--value"))) value_bytes = parse_number("--value", value);
    else if ((value = option_value(argc, argv, &i, "--seconds"))) seconds = parse_number("--seconds", value);
    else if ((value = option_value(argc, argv, &i, "--warm"))) warm = parse_number("--warm", value);
    else if ((value = option_value(argc, argv, &i, "--connections"))) count = parse_number("--connections", value);
    else if ((value = option_value(argc, argv, &i, "--theta"))) theta = parse_number("--theta", value);
    else if ((value = option_value(argc, argv, &i, "--sets"))) sets_percent = parse_number("--sets", value);
    else if ((value = option_value(argc, argv, &i, "--seed"))) seed = parse_number("--seed", value);
    else if (strcmp(argv[i], "--load") == 0) loading = true;
    else
      die("usage: respload --socket PATH [--load] [--keys N] [--value BYTES] [--seconds N] [--warm N] [--connections N]\n"
          "  [--theta HUNDREDTHS] [--sets PERCENT] [--seed N]");
  }
  if (!path) die("--socket is missing");
  if (keys == 0 || keys > 1 << 28) die("--keys: 1...%d", 1 << 28);
  if (value_bytes < HEADER || value_bytes > MOST_VALUE) die("--value: %d...%d", HEADER, MOST_VALUE);
  if (count == 0 || count > MOST_CONNECTIONS) die("--connections: 1...%d", MOST_CONNECTIONS);
  for (uint64_t i = 0; i < SOURCES; i++) fill_page(sources[i], 1, i, MIXED);
  if (loading) {
    load(path);
    return 0;
  }
  Rng rng = {seed};
  prepare_zipf((double)theta / 100, &rng);
  static Connection connections[MOST_CONNECTIONS];
  sent = calloc(keys, sizeof *sent);
  confirmed = calloc(keys, sizeof *confirmed);
  if (!sent || !confirmed) die("no memory");
  for (uint64_t i = 0; i < count; i++) connections[i].descriptor = connected(path);
  uint64_t from = now_ns() + warm * 1000000000u, end = from + seconds * 1000000000u;
  uint64_t requests = run(connections, count, from, end, &rng);
  double took = (double)(now_ns() - from) / 1e9;
  printf("{\"requests\": %llu, \"seconds\": %.3f, \"per_second\": %.0f, \"p50_us\": %u, \"p99_us\": %u, \"p999_us\": %u}\n",
         (unsigned long long)requests, took, (double)requests / took, percentile(requests, 0.5), percentile(requests, 0.99),
         percentile(requests, 0.999));
  return 0;
}
