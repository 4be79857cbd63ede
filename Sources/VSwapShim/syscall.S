// syscall(2), the function: calls that the library stands in for are made by it whichever way a program makes them.
// Everything else goes to the kernel from here as it does from libc, without a stack frame: after a clone(2) onto
// another stack, or vfork(2), nothing of ours may lie on it.
#include <asm/unistd.h>

#if defined(__x86_64__)
  .text
  .globl syscall
  .type syscall, @function
syscall:
  .cfi_startproc
  endbr64
  cmpq $__NR_mremap, %rdi
  je 1f
  cmpq $__NR_madvise, %rdi
  je 1f
  cmpq $__NR_process_madvise, %rdi
  je 1f
  cmpq $__NR_ioctl, %rdi
  je 1f
  cmpq $__NR_prctl, %rdi
  je 1f
  cmpq $__NR_seccomp, %rdi
  je 1f
  movq %rdi, %rax
  movq %rsi, %rdi
  movq %rdx, %rsi
  movq %rcx, %rdx
  movq %r8, %r10
  movq %r9, %r8
  movq 8(%rsp), %r9
  syscall
2:
  cmpq $-4095, %rax
  jae 3f
  ret
3:
  movq %rax, %rdi
  jmp shim_told
1:
  // The seventh argument moves to where the callee looks for it.
  pushq 8(%rsp)
  .cfi_adjust_cfa_offset 8
  call shim_seen_call
  addq $8, %rsp
  .cfi_adjust_cfa_offset -8
  jmp 2b
  .cfi_endproc
  .size syscall, .-syscall
#endif
  .section .note.GNU-stack,"",@progbits
