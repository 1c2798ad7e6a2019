"""Sliding windows: how many images of a rate are used, and when there are more.

A window begins with the first image. Images of the previous window count by the fraction of it that still lies within the
rate's period, rounded down. Times are in milliseconds.

::

    ├──── previous: 8 images ────┼──── current: 3 images ── now            used: 8 x 1/4 + 3 = 5
    0                          length                   1.75 length
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WindowState:
    """The images of the current window, which began ``age`` ago, and of the one before."""

    age: int = 0
    current: int = 0
    previous: int = 0

    def used(self, length: int) -> int:
        """Images that count now."""
        return self.previous * (length - 1 - self.age) // length + self.current

    def wait(self, images: int, *, quota: int, length: int) -> int:
        """Milliseconds until ``images`` fit into the quota, if no other image is counted meanwhile. ``images`` is at most
        the quota.
        """
        free = quota - images
        if self.current <= free:
            return max(0, _age_for(self.previous, free - self.current, length) - self.age)
        return length - self.age + max(0, _age_for(self.current, free, length))

    def advanced(self, milliseconds: int, length: int) -> WindowState:
        """The state some time later."""
        age = self.age + milliseconds
        if age < length:
            return WindowState(age, self.current, self.previous)
        return WindowState(age - length, 0, self.current) if age < 2 * length else WindowState()

    def add(self, images: int) -> WindowState:
        """The state with more images, or fewer for a negative number."""
        current = self.current + images
        return WindowState(self.age, max(0, current), max(0, self.previous + min(0, current)))


def _age_for(previous: int, share: int, length: int) -> int:
    """The age at which at most ``share`` of ``previous`` images count."""
    return length - 1 - ((share + 1) * length - 1) // previous if previous else 0


# The same arithmetic in Redis. Arguments: quota, length, images. Returns whether they fit and were counted, and the state.
# A key expires two lengths after its window began, so its time to live is the window's age.
SCRIPT = """
local quota, length, images = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local age, current, previous = 0, 0, 0
local left = redis.call('PTTL', KEYS[1])
if left > 0 then
    local stored = redis.call('HMGET', KEYS[1], 'current', 'previous')
    age, current, previous = 2 * length - left, tonumber(stored[1]) or 0, tonumber(stored[2]) or 0
end
if age >= length then
    age, current, previous = age - length, 0, current
end
local used = math.floor(previous * (length - 1 - age) / length) + current
local fits = images < 0 or used + images <= quota
if fits and images ~= 0 then
    current = current + images
    previous = math.max(0, previous + math.min(0, current))
    current = math.max(0, current)
    redis.call('HSET', KEYS[1], 'current', current, 'previous', previous)
    redis.call('PEXPIRE', KEYS[1], 2 * length - age)
end
return {fits and 1 or 0, age, current, previous}
"""
