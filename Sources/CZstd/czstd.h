#ifndef CZSTD_H
#define CZSTD_H
// The experimental section is needed for the error codes' and frame formats' constants, not for functions.
#define ZSTD_STATIC_LINKING_ONLY
#include <zstd.h>
#include <zstd_errors.h>
#endif
