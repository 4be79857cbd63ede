#ifndef CZSTD_H
#define CZSTD_H
// The experimental sections are needed for the constants of errors and frame formats, and for dictionaries with parameters of their own.
#define ZSTD_STATIC_LINKING_ONLY
#define ZDICT_STATIC_LINKING_ONLY
#include <zstd.h>
#include <zstd_errors.h>
#include <zdict.h>
#endif
