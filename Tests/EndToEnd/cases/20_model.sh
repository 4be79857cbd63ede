# shellcheck shell=bash
# shellcheck disable=SC2034,SC2153  # settings for Tests/EndToEnd/run; SEED is from the library
# Random memory operations against a shadow (Tests/Programs/model.c).

# With worker threads: ten seeds.
seconds_model_threads=600
case_model_threads() {
  local i
  for i in 0 1 2 3 4 5 6 7 8 9; do
    limited 24M "$PROGRAMS/model" --seed $((SEED + i)) --size 96 --steps 900 --threads 2 || fail "seed $((SEED + i))"
  done
  remark "seeds=$SEED...$((SEED + 9))"
  require_swapping
}

# Without: the same operations succeed and fail in the same order as without a limit.
seconds_model_sequence=300
case_model_sequence() {
  local i seed
  for i in 0 1 2; do
    seed=$((SEED + 100 + i))
    "$PROGRAMS/model" --seed $seed --size 64 --steps 2000 --threads 0 >native.out || fail "seed $seed fails without a limit"
    limited 16M "$PROGRAMS/model" --seed $seed --size 64 --steps 2000 --threads 0 >limited.out || fail "seed $seed"
    cat native.out limited.out
    [[ $(grep -o 'refused=.*outcome=[0-9a-f]*' native.out | sed 's/free.*outcome/outcome/') == \
      $(grep -o 'refused=.*outcome=[0-9a-f]*' limited.out | sed 's/free.*outcome/outcome/') ]] ||
      fail "seed $seed: operations have other results under a limit"
  done
  remark "seeds=$((SEED + 100))...$((SEED + 102))"
  require_swapping
}

# Many threads, no forks: events of one thread against faults of the others.
seconds_model_crowd=200
case_model_crowd() {
  limited 16M "$PROGRAMS/model" --seed $((SEED + 200)) --size 64 --seconds 10 --threads 8 --without fork_work,fork_long,fork_quick
  require_swapping
}

# Events of several threads that reuse each other's addresses at once.
seconds_model_moves=200
case_model_moves() {
  local threads
  for threads in 3 6 12; do
    limited 8M "$PROGRAMS/moves" -s $((SEED + 500 + threads)) -t $threads -d 5 || fail "seed $((SEED + 500 + threads)), $threads threads"
  done
  require_swapping
}

# Mostly forks.
seconds_model_forks=200
case_model_forks() {
  limited 16M "$PROGRAMS/model" --seed $((SEED + 300)) --size 48 --steps 200 --threads 1 \
    --ops map,unmap,write_pages,write_part,verify,dontneed,mremap_move,wipe_on_fork,dont_fork,fork_quick,fork_work,fork_long
  require_swapping
}

# Children that need the library while it attaches to the daemon on their behalf.
seconds_model_growup=200
case_model_growup() {
  limited 16M "$PROGRAMS/growup" --children 3000 --seed $((SEED + 500))
}

# Children of a program whose allocator is locked during the fork handlers, and children that no handler ran for.
seconds_model_forkheap=200
case_model_forkheap() {
  limited 12M "$PROGRAMS/forkheap" --children 300 --seed $((SEED + 600))
  require_swapping
}

# A signal handler needs what the call that it interrupts is just taking.
seconds_model_interrupts=60
case_model_interrupts() {
  limited 12M "$PROGRAMS/interrupts" --seconds 5
  require_swapping
}

seconds_model_mremap=200
case_model_mremap() {
  limited 16M "$PROGRAMS/model" --seed $((SEED + 400)) --size 64 --steps 6000 --threads 1 \
    --ops map,unmap,write_part,verify,protect_read,protect_write,lock,unlock,mremap_grow,mremap_shrink,mremap_move,mremap_resize,mremap_several,mremap_dontunmap,mremap_out
  require_swapping
}

seconds_gcheap=200
case_gcheap() {
  limited 24M "$PROGRAMS/gcheap" --seed "$SEED" --threads 3 --seconds 10 --size 96
  require_swapping
}
