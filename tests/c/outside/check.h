/* Uses the library as a program outside this repository would: for C and for C++. */
#ifndef CHECK_H
#define CHECK_H

#ifdef __cplusplus
extern "C" {
#endif

/* Prints what it found; 0 when all is well. */
int check_library(void);

#ifdef __cplusplus
}
#endif

#endif
