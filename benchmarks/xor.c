// Gradient descent on 1/2 sum (y - s(s(x w0) w1))^2 over the four examples of XOR, s the logistic function: 3-4-1 nodes.

#include <math.h>

enum { EXAMPLES = 4, INPUTS = 3, HIDDEN = 4 };

static const double X[EXAMPLES][INPUTS] = {{0, 0, 1}, {0, 1, 1}, {1, 0, 1}, {1, 1, 1}};
static const double Y[EXAMPLES] = {0, 1, 1, 0};

static double logistic(double z) { return 1 / (1 + exp(-z)); }

void train(double w0[INPUTS][HIDDEN], double w1[HIDDEN], long steps, double rate)
{
    for (long step = 0; step < steps; step++) {
        double g0[INPUTS][HIDDEN] = {{0}}, g1[HIDDEN] = {0};
        for (int n = 0; n < EXAMPLES; n++) {
            double hidden[HIDDEN], out = 0;
            for (int j = 0; j < HIDDEN; j++) {
                double z = 0;
                for (int i = 0; i < INPUTS; i++)
                    z += X[n][i] * w0[i][j];
                hidden[j] = logistic(z);
                out += hidden[j] * w1[j];
            }
            out = logistic(out);
            double back = (out - Y[n]) * out * (1 - out);
            for (int j = 0; j < HIDDEN; j++) {
                double inner = back * w1[j] * hidden[j] * (1 - hidden[j]);
                g1[j] += back * hidden[j];
                for (int i = 0; i < INPUTS; i++)
                    g0[i][j] += inner * X[n][i];
            }
        }
        for (int j = 0; j < HIDDEN; j++) {
            w1[j] -= rate * g1[j];
            for (int i = 0; i < INPUTS; i++)
                w0[i][j] -= rate * g0[i][j];
        }
    }
}
