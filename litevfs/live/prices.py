"""What requests cost. Owns the prices; counts nothing."""

from __future__ import annotations

MONTH_S = 30 * 24 * 3600
LIST_USD = 5.0 / 1e6
"""Of a request of S3 Standard in us-east-1: aws.amazon.com/s3/pricing."""
GET_USD = 0.4 / 1e6


def usd_month(lists: float, gets: float, seconds: float) -> float:
    """US dollars that 30 days cost at the pace of so many requests within `seconds`."""
    return (lists * LIST_USD + gets * GET_USD) * MONTH_S / max(seconds, 1.0)
