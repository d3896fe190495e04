"""Makes the demo shop: `python -m jobs.demo_shop --out DIR --users N --items M`."""

import argparse
import time
from pathlib import Path

from jobs.demo_shop.feed import write_demo_shop
from jobs.demo_shop.spec import ShopSpec
from lte_model.command_line import run


def main() -> None:
    """Reads the command line and runs the command."""
    parser = argparse.ArgumentParser(prog="python -m jobs.demo_shop", description=__doc__)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the feeds and their truth")
    parser.add_argument("--users", required=True, type=int, metavar="N")
    parser.add_argument("--items", required=True, type=int, metavar="M")
    parser.add_argument("--seed", type=int, default=ShopSpec.seed, help="default: %(default)s")
    parser.add_argument(
        "--stable-taste-share",
        type=float,
        default=ShopSpec.stable_taste_share,
        metavar="X",
        help="share of users with a long-term taste, default: %(default)s",
    )
    parser.add_argument(
        "--events-per-user",
        type=float,
        default=ShopSpec.events_per_user,
        metavar="E",
        help="mean over the two years, default: %(default)s",
    )
    arguments = parser.parse_args()
    spec = ShopSpec(
        users=arguments.users,
        items=arguments.items,
        seed=arguments.seed,
        stable_taste_share=arguments.stable_taste_share,
        events_per_user=arguments.events_per_user,
    )
    begin = time.perf_counter()
    planted = write_demo_shop(spec, arguments.out)
    how = "reused" if planted.reused else f"made in {time.perf_counter() - begin:.1f} s"
    print(f"demo shop in {arguments.out} ({how})")
    print(
        f"{planted.rows:,} event rows of {spec.users:,} users on {spec.items:,} items, "
        f"{planted.first_event_date} to {planted.last_event_date}, seed {spec.seed}"
    )
    print(f"tastes: {planted.stable:,} stable, {planted.drifting:,} drifting, {planted.without_taste:,} none")
    print(
        f"dirt: {planted.duplicates:,} exact duplicates, {planted.late:,} late, "
        f"{planted.unknown_items:,} of unknown items, {planted.broken_timestamps:,} broken timestamps, "
        f"{planted.missing_users:,} without user, {planted.missing_items:,} without item, "
        f"{planted.bot_events:,} of the bot {planted.bot_user_id}"
    )


if __name__ == "__main__":
    run(main)
