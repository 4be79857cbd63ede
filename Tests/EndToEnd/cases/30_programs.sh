# shellcheck shell=bash
# shellcheck disable=SC2034,SC2153  # settings for Tests/EndToEnd/run; SEED is from the library
# Real programs at a quarter of their memory; results are those of a run without a limit.

redis() { redis-cli -s "$CASE_DIR/redis.sock" "$@"; }
client() { "$PYTHON" "$SUPPORT/redis_client.py" "$1" "$CASE_DIR/redis.sock" "$keys" "$SEED"; }
redis_answers() { [[ $(redis ping 2>/dev/null) == PONG ]]; }
redis_has_saved() { [[ $(redis info persistence) == *rdb_bgsave_in_progress:0* ]]; }
redis_options=(--port 0 --save '' --appendonly no --daemonize no --enable-debug-command yes --loglevel warning)

needs_redis="redis-server redis-cli python3"
seconds_redis=400
case_redis() {
  local keys=200000 server status=0 digest changed
  # How much it needs, and what its data should be.
  native redis redis-server "${redis_options[@]}" --unixsocket "$CASE_DIR/redis.sock" --dir "$CASE_DIR" &
  server=$!
  wait_until 20 redis_answers || fail "redis-server does not answer"
  client load
  digest=$(redis debug digest)
  client change
  changed=$(redis debug digest)
  redis shutdown nosave || true
  wait "$server" || fail "redis-server fails even without a limit"

  limited "$(quarter redis)" redis-server "${redis_options[@]}" --unixsocket "$CASE_DIR/redis.sock" --dir "$CASE_DIR" &
  server=$!
  wait_until 20 redis_answers || fail "redis-server does not answer under a limit"
  client load
  client verify
  [[ $(redis debug digest) == "$digest" ]] || fail "the digest is another one"
  # Every page that changes now is shared with the child that saves.
  redis bgsave
  client change
  wait_until 120 redis_has_saved || fail "BGSAVE does not end"
  [[ $(redis info persistence) == *rdb_last_bgsave_status:ok* ]] || fail "BGSAVE failed"
  [[ $(redis debug digest) == "$changed" ]] || fail "the digest after changes is another one"
  redis shutdown nosave || true
  wait "$server" || status=$?
  ((status == 0)) || fail "redis-server ended with status $status"

  # The dump is of the moment of BGSAVE.
  redis-server "${redis_options[@]}" --unixsocket "$CASE_DIR/redis.sock" --dir "$CASE_DIR" &
  server=$!
  wait_until 60 redis_answers || fail "redis-server does not load the dump"
  wait_until 60 redis ping
  [[ $(redis debug digest) == "$digest" ]] || fail "the dump holds other data"
  redis shutdown nosave || true
  wait "$server" || true
  require_swapping
}

needs_python="python3"
seconds_python=240
case_python() {
  PYTHONHASHSEED=$((SEED % 1000)) compare python "$PYTHON" "$SUPPORT/work.py" "$SEED" "${PYTHON_ENTRIES:-100000}"
  require_swapping
}

needs_sort="sort python3"
seconds_sort=400
case_sort() {
  "$PYTHON" "$SUPPORT/lines.py" "$SEED" "${SORT_MIB:-300}" lines
  LC_ALL=C native sort sort -S 2G --parallel=2 -o native.sorted lines
  LC_ALL=C limited "$(quarter sort)" sort -S 2G --parallel=2 -o limited.sorted lines || fail "sort ended with status $?"
  cmp native.sorted limited.sorted || fail "sorted in another order"
  require_swapping
}

needs_sqlite="sqlite3"
seconds_sqlite=300
case_sqlite() {
  compare sqlite sqlite3 :memory: "
    PRAGMA temp_store = MEMORY;
    CREATE TABLE facts(id INTEGER PRIMARY KEY, number INTEGER, text TEXT);
    WITH RECURSIVE counter(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM counter WHERE i < 299999)
      INSERT INTO facts SELECT i, (i * 2654435761 + $SEED) % 1000003, printf('%08x %d %s', i * 40503, i * $SEED % 9973, substr('virtual swap slot page area group target fault evict limit pool cache zero agent ring region of memory', 1 + i % 40, 60)) FROM counter;
    CREATE INDEX by_number ON facts(number);
    CREATE INDEX by_text ON facts(text);
    UPDATE facts SET text = text || ' changed' WHERE number % 7 = 0;
    DELETE FROM facts WHERE number % 11 = 0;
    SELECT count(*), sum(number), sum(length(text)), max(text) FROM facts;
    SELECT number % 10, count(*), min(text) FROM facts GROUP BY 1 ORDER BY 1;
    SELECT sum(a.number * b.id % 1009) FROM facts a JOIN facts b ON b.number = a.id WHERE a.id < 200000;
    SELECT id, text FROM (SELECT id, text FROM facts ORDER BY substr(text, 9), id DESC) LIMIT 5 OFFSET 100000;
    PRAGMA integrity_check;"
  require_swapping
}

compile() {
  local compiler=$1
  "$PYTHON" "$SUPPORT/large_source.py" "$SEED" 300 large.c
  native "$compiler" "$compiler" -O1 -c large.c -o native.o
  limited "$(quarter "$compiler")" "$compiler" -O1 -c large.c -o limited.o || fail "$compiler ended with status $?"
  cmp native.o limited.o || fail "$compiler made other code"
  require_swapping
}

needs_gcc="gcc python3"
seconds_gcc=400
case_gcc() { compile gcc; }

needs_clang="clang python3"
seconds_clang=400
case_clang() { compile clang; }

needs_node="node"
seconds_node=300
case_node() {
  compare node node "$SUPPORT/work.js" "$SEED" 250000
  require_swapping
}

needs_java="java javac"
seconds_java=300
case_java() {
  javac -J-XX:-UsePerfData -d . "$SUPPORT/Work.java"
  compare java java -XX:-UsePerfData -Xmx512m -cp . Work "$SEED" 600000
  require_swapping
}
