"""What requests cost. Owns the prices; counts nothing."""

from __future__ import annotations

from dataclasses import dataclass

MONTH_S = 30 * 24 * 3600


@dataclass(frozen=True, slots=True)
class RequestPrices:
    """US dollars of a million requests."""

    list_usd: float
    get_usd: float


PRICES = {
    "S3 Standard": RequestPrices(list_usd=5.0, get_usd=0.4),  # aws.amazon.com/s3/pricing, us-east-1
}
DEFAULT = "S3 Standard"


def usd_month(lists: float, gets: float, seconds: float, prices: RequestPrices = PRICES[DEFAULT]) -> float:
    """US dollars that 30 days cost at the pace of so many requests within `seconds`."""
    return (lists * prices.list_usd + gets * prices.get_usd) / 1e6 * MONTH_S / max(seconds, 1.0)
