// TERRACE_CLONES before a function of plain loops: the compiler builds it for AVX-512, AVX2 and the
// baseline, and the loader picks one. All give identical results, for none may contract a multiply
// and an add (the files are built with -ffp-contract=off), none reorders a sum, and what is fused
// says so (__builtin_fmaf: an instruction, or libm's in the baseline).
// Sanitizers and clang 14 do without: there the baseline is built alone.
#pragma once

#if defined(__x86_64__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define TERRACE_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define TERRACE_CLONES
#endif
