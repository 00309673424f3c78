"""How objects move on the ground, and what a detection says about it: Kalman filters in numba.

The state of an object is x, y, vx, vy, yaw, turn rate (metres, seconds, radians; a fixed frame).
An object of constant velocity goes on straight. One of constant turn rate w goes round:

    x(t) = x + vx sin(wt)/w - vy (1 - cos(wt))/w      vx(t) = vx cos(wt) - vy sin(wt)
    y(t) = y + vx (1 - cos(wt))/w + vy sin(wt)/w      vy(t) = vx sin(wt) + vy cos(wt)

with yaw(t) = yaw + wt (the coordinated turn of Bar-Shalom, Li and Kirubarajan, Estimation with
Applications to Tracking and Navigation, 2001, section 11.7); its covariance moves by the Jacobian,
as in an extended Kalman filter. With w = 0 and no turn noise it is the constant velocity, so that
one code serves both.
"""

from __future__ import annotations

import math

import numpy as np

from ...kernels.threads import compiled_in_order

STATE = 6  # x, y, vx, vy, yaw, turn rate
MEASURED = 5  # all but the turn rate
SMALL_TURN = 1e-3  # radians in a step; below, series replace the quotients


@compiled_in_order
def predict_(mean, covariance, noise, seconds):
    """Move N states on in time, in place.

    Args:
        mean: (N, 6).
        covariance: (N, 6, 6).
        noise: (N, 3) standard deviations of acceleration (m/s2), of the change of yaw
            (rad/sqrt(s)) and of turn acceleration (rad/s2); the last one 0 for those that do not
            turn.
        seconds: to move on.
    """
    t = seconds
    jacobian, half = np.empty((STATE, STATE)), np.empty((STATE, STATE))
    for n in range(len(mean)):
        x, y, vx, vy, yaw, w = mean[n]
        s, c = math.sin(w * t), math.cos(w * t)
        if abs(w * t) > SMALL_TURN:
            along, across = s / w, (1 - c) / w
            along_w, across_w = (w * t * c - s) / (w * w), (w * t * s - (1 - c)) / (w * w)
        else:
            along, across = t - w * w * t**3 / 6, w * t * t / 2
            along_w, across_w = -w * t**3 / 3, t * t / 2
        jacobian[:] = 0.0
        for i in range(STATE):
            jacobian[i, i] = 1.0
        jacobian[0, 2], jacobian[0, 3] = along, -across
        jacobian[1, 2], jacobian[1, 3] = across, along
        jacobian[2, 2], jacobian[2, 3] = c, -s
        jacobian[3, 2], jacobian[3, 3] = s, c
        jacobian[0, 5] = vx * along_w - vy * across_w
        jacobian[1, 5] = vx * across_w + vy * along_w
        jacobian[2, 5], jacobian[3, 5] = t * (-s * vx - c * vy), t * (c * vx - s * vy)
        jacobian[4, 5] = t
        mean[n, 0], mean[n, 1] = x + vx * along - vy * across, y + vx * across + vy * along
        mean[n, 2], mean[n, 3] = vx * c - vy * s, vx * s + vy * c
        mean[n, 4] = wrapped(yaw + w * t)
        _sandwich_(jacobian, covariance[n], half)
        _add_noise_(covariance[n], noise[n], t)


@compiled_in_order
def _sandwich_(jacobian, covariance, half):
    """covariance = jacobian covariance jacobian^T."""
    for i in range(STATE):
        for j in range(STATE):
            total = 0.0
            for k in range(STATE):
                total += jacobian[i, k] * covariance[k, j]
            half[i, j] = total
    for i in range(STATE):
        for j in range(STATE):
            total = 0.0
            for k in range(STATE):
                total += half[i, k] * jacobian[j, k]
            covariance[i, j] = total


@compiled_in_order
def _add_noise_(covariance, noise, t):
    """An acceleration and a turn acceleration that are constant within a step, and yaw's walk."""
    acceleration, turn = noise[0] ** 2, noise[2] ** 2
    for place, speed in ((0, 2), (1, 3)):
        covariance[place, place] += acceleration * t**4 / 4
        covariance[place, speed] += acceleration * t**3 / 2
        covariance[speed, place] += acceleration * t**3 / 2
        covariance[speed, speed] += acceleration * t * t
    covariance[4, 4] += noise[1] ** 2 * t + turn * t**4 / 4
    covariance[4, 5] += turn * t**3 / 2
    covariance[5, 4] += turn * t**3 / 2
    covariance[5, 5] += turn * t * t


@compiled_in_order
def correct_(mean, covariance, measured, noise):
    """Let N states learn of N measurements, in place.

    What is measured has independent errors, so that the parts are taken one after the other, which
    needs no inverse. A NaN says nothing. A measured yaw that points backwards is turned round:
    detectors mistake front for back far more often than they are off by that much.

    Args:
        mean: (N, 6).
        covariance: (N, 6, 6).
        measured: (N, 5) x, y, vx, vy, yaw.
        noise: (N, 5) standard deviations.
    """
    gain = np.empty(STATE)
    for n in range(len(mean)):
        for k in range(MEASURED):
            error = measured[n, k] - mean[n, k]
            if k == 4:
                error = wrapped(error)
                if abs(error) > math.pi / 2:
                    error = wrapped(error + math.pi)
            if not math.isfinite(error):
                continue
            spread = covariance[n, k, k] + noise[n, k] ** 2
            for i in range(STATE):
                gain[i] = covariance[n, i, k] / spread
            for i in range(STATE):
                mean[n, i] += gain[i] * error
            row = covariance[n, k].copy()
            for i in range(STATE):
                for j in range(STATE):
                    covariance[n, i, j] -= gain[i] * row[j]
        mean[n, 4] = wrapped(mean[n, 4])


@compiled_in_order
def wrapped(angle):
    """An angle in [-pi, pi)."""
    return (angle + math.pi) % (2 * math.pi) - math.pi
