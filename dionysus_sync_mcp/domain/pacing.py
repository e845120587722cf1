"""How much a push takes on, and how long it may take: less and longer on a slow link, back to the settings after."""

from dataclasses import dataclass, replace

USUAL_SECONDS = 5.0
# Planning a statement for the first time takes 1-2 s on a quiet machine.
FIRST_SECONDS = 20.0
LONGEST_SECONDS = 60.0
# One row cannot be made smaller: 20 MB at 64 kB/s take five minutes.
LONGEST_SECONDS_OF_ONE_ROW = 600.0
SMALLEST_SIZE = 10_000
# Of the deadline. In less than half of it a batch twice as large goes through too; in less than a quarter, it does so
# within half the deadline, and the pace does not swing to and fro.
QUICK = 0.5
VERY_QUICK = 0.25
# Of a push that looks for refused rows. A claim may be idle for 24 deadlines, and a write is told by its own.
MOST_WRITES = 64
MOST_DEADLINES = 8


@dataclass(slots=True)
class Budget:
    """What a push may spend on finding the rows that the remote store refuses; the next push goes on from there.

    Attributes:
        writes: How many more there may be.
        ends_at: On a clock of the caller's, in seconds.
        decided: Whether anything is; until then it goes on, since the next push would do the same again.
    """

    ends_at: float
    writes: int = MOST_WRITES
    decided: bool = False

    def is_spent(self, now: float) -> bool:
        """Whether the rest is for the next push."""
        return self.decided and (self.writes <= 0 or now >= self.ends_at)


@dataclass(frozen=True, slots=True)
class Pace:
    """What the next batch may be.

    Attributes:
        rows: Queue entries, at most.
        size: Bytes of their rows, about.
        seconds: Deadline of the remote store's transaction, and of a statement that reads or writes many rows.
        is_cold: Whether the remote store's statements have to be planned by the next write.
        most_rows: As set; `rows` goes back to it.
        most_size: As set; `size` goes back to it.
    """

    rows: int
    size: int
    seconds: float
    most_rows: int
    most_size: int
    is_cold: bool = False

    @classmethod
    def first(cls, rows: int, size: int) -> "Pace":
        """The settings."""
        return cls(rows, size, USUAL_SECONDS, rows, size)

    @property
    def deadline(self) -> float:
        """Seconds of the next write."""
        return max(self.seconds, FIRST_SECONDS) if self.is_cold else self.seconds

    def budget(self, now: float) -> Budget:
        """Of a push whose batch was refused."""
        return Budget(now + MOST_DEADLINES * self.seconds)

    def when_cold(self, is_cold: bool = True) -> "Pace":
        """The same, with time to plan the statements, or without it."""
        return replace(self, is_cold=is_cold)

    def after_time_out(self) -> "Pace":
        """Half of it, in twice the time."""
        longest = LONGEST_SECONDS if self.rows > 1 else LONGEST_SECONDS_OF_ONE_ROW
        return replace(
            self,
            rows=max(1, self.rows // 2),
            size=min(self.size, max(SMALLEST_SIZE, self.size // 2)),
            seconds=max(self.seconds, min(longest, self.deadline * 2)),
            is_cold=False,
        )

    def after_success(self, took: float) -> "Pace":
        """Twice as much where it was quick, and in half the time where it was very quick; `took` is in seconds."""
        warm = replace(self, is_cold=False)
        if took >= self.seconds * QUICK:
            return warm
        return replace(
            warm,
            rows=min(self.most_rows, self.rows * 2),
            size=min(self.most_size, self.size * 2),
            seconds=max(USUAL_SECONDS, self.seconds / 2) if took < self.seconds * VERY_QUICK else self.seconds,
        )
