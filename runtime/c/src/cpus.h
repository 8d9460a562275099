/* How many CPUs this process may use. */
#ifndef CATS_CPUS_H
#define CATS_CPUS_H

/* CPUs of the affinity mask or the control group's quota where they are fewer than the machine's physical cores, which
 * ONNX Runtime counts and nothing else; 0 where they are not. */
int cats_limited_cpus(void);

#endif
