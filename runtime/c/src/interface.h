/* Comparing a loaded model with the contract of its kind. */
#ifndef CATS_INTERFACE_H
#define CATS_INTERFACE_H

#include "matcher.h"

/* A pair model: image_a, image_b to flow, confidence. */
cats_status cats_check_pair(cats_matcher *matcher);

/* Encoder: image to features. Matcher: features of a and of b to flow, confidence. */
cats_status cats_check_split(cats_matcher *matcher);

#endif
