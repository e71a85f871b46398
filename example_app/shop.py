"""The shop and its cart, which is nested data that is changed in place."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass
from datetime import datetime
from datetime import timezone

from flask import Blueprint
from flask import abort
from flask import flash
from flask import redirect
from flask import render_template
from flask import request
from flask import url_for
from flask.typing import ResponseReturnValue
from flask_login import current_user

from flask_serversession import ServerSideSession
from flask_serversession import session

blueprint = Blueprint("shop", __name__)

MAX_QUANTITY = 99


@dataclass(frozen=True)
class Product:
    """Something to buy; the price is in cents."""

    sku: str
    name: str
    price: int
    description: str


PRODUCTS = {
    product.sku: product
    for product in (
        Product(
            "notebook",
            "Notebook",
            950,
            "Ninety-six lined pages, sewn, that stay open where you leave them.",
        ),
        Product(
            "pen",
            "Fountain pen",
            2400,
            "A steel nib and a light barrel. Writes the moment it touches paper.",
        ),
        Product(
            "ink",
            "Bottle of ink",
            1250,
            "Fifty millilitres of blue-black, dark when it dries, kind to the pen.",
        ),
        Product(
            "pencils",
            "Pencils",
            480,
            "Six of cedar wood, from hard to soft, sharpened and ready to go.",
        ),
        Product(
            "envelopes",
            "Envelopes",
            620,
            "Twenty-five, lined, of the kind that people open first.",
        ),
        Product(
            "clips",
            "Paper clips",
            250,
            "A hundred, of brass. They hold what belongs together.",
        ),
    )
}


class Line(t.NamedTuple):
    """A line of the cart, for its page."""

    product: Product
    quantity: int

    @property
    def total(self) -> int:
        """The price of all, in cents."""
        return self.product.price * self.quantity


def cart_items(content: ServerSideSession = session) -> dict[str, dict[str, t.Any]]:
    """Give what is in the cart: the session's own dict, if it has a cart."""
    items: dict[str, dict[str, t.Any]] = content.get("cart", {}).get("items", {})
    return items


def cart_count() -> int:
    """Give how many things are in the cart."""
    return sum(item["quantity"] for item in cart_items().values())


@blueprint.app_template_filter("money")
def money(cents: int) -> str:
    """Write a price."""
    return f"€{cents / 100:,.2f}"


@blueprint.get("/")
def home() -> ResponseReturnValue:
    """Show all products. There is no form, so a visitor does not get a session yet."""
    return render_template("home.html", products=PRODUCTS.values())


@blueprint.get("/products/<sku>")
def product(sku: str) -> ResponseReturnValue:
    """Show one product."""
    return _product_page(_product_or_404(sku))


@blueprint.get("/cart")
def cart() -> ResponseReturnValue:
    """Show the cart."""
    return _cart_page()


@blueprint.post("/cart/add")
def add_to_cart() -> ResponseReturnValue:
    """Put a product into the cart, or more of it."""
    product = _product_or_404(request.form.get("sku", ""))
    sent = request.form.get("quantity", "1")

    if not (quantity := _quantity(sent)):
        error = f"Say how many, from 1 to {MAX_QUANTITY}."
        return _product_page(product, sent, error), 422

    session.setdefault("cart", {"items": {}})
    session["cart"]["items"].setdefault(
        product.sku, {"quantity": 0, "added_at": datetime.now(timezone.utc)}
    )
    # Found and saved, as deep as it is: session.modified need not be set.
    session["cart"]["items"][product.sku]["quantity"] += quantity
    surplus = _limit_quantity(product.sku)

    if surplus:
        flash(
            f"{product.name}: {quantity - surplus} of {quantity} added, because a cart"
            f" holds {MAX_QUANTITY} of a product at most.",
            "warning",
        )
    else:
        flash(f"{product.name}: {quantity} added to your cart.", "success")

    return redirect(url_for(".cart"))


@blueprint.post("/cart/update")
def update_cart() -> ResponseReturnValue:
    """Set the quantities of several products; 0 takes one out."""
    items = cart_items()
    sent = {
        sku: request.form[f"quantity-{sku}"]
        for sku in items
        if f"quantity-{sku}" in request.form
    }
    asked = {sku: _quantity(text) for sku, text in sent.items()}

    if None in asked.values():
        wrong = {sku for sku, quantity in asked.items() if quantity is None}
        return _cart_page(sent, wrong), 422

    for sku, quantity in asked.items():
        if quantity:
            items[sku]["quantity"] = quantity
        else:
            del items[sku]

    flash("Your cart is up to date.", "success")
    return redirect(url_for(".cart"))


@blueprint.post("/cart/remove")
def remove_from_cart() -> ResponseReturnValue:
    """Take a product out."""
    product = _product_or_404(request.form.get("sku", ""))

    if (item := cart_items().pop(product.sku, None)) is not None:
        session["removed"] = {product.sku: item}
        flash(f"Removed: {product.name}.", "info")

    return redirect(url_for(".cart"))


@blueprint.post("/cart/undo")
def undo_removal() -> ResponseReturnValue:
    """Put back what was taken out last."""
    items = session.setdefault("cart", {"items": {}})["items"]

    for sku, item in session.pop("removed", {}).items():
        items.setdefault(sku, item)
        flash(f"Back in your cart: {PRODUCTS[sku].name}.", "success")

    return redirect(url_for(".cart"))


@blueprint.post("/cart/order")
def order() -> ResponseReturnValue:
    """Order what is in the cart."""
    if not current_user.is_authenticated:
        flash("Log in to order. Your cart will still be there.", "info")
        return redirect(url_for("auth.log_in", next=url_for(".cart")))

    # A double click sends two requests at once, and only one of them may get the
    # cart: atomic() gives each the freshest session, and saves it before going on.
    lines = _lines(session.atomic(_take_cart))

    if not lines:
        flash("There was nothing left in your cart to order.", "warning")
        return redirect(url_for(".cart"))

    total = money(_total(lines))
    flash(f"Thank you, {current_user.name}: ordered for {total}.", "success")
    return redirect(url_for(".home"))


def _take_cart(content: ServerSideSession) -> dict[str, dict[str, t.Any]]:
    items = cart_items(content)
    content.pop("cart", None)
    return items


def _lines(items: t.Mapping[str, t.Mapping[str, t.Any]]) -> list[Line]:
    # What is sold no more may still be in somebody's cart.
    return [
        Line(PRODUCTS[sku], item["quantity"])
        for sku, item in items.items()
        if sku in PRODUCTS
    ]


def _total(lines: list[Line]) -> int:
    return sum(line.total for line in lines)


def _product_or_404(sku: str) -> Product:
    return PRODUCTS.get(sku) or abort(404)


def _quantity(text: str) -> int | None:
    """Read a number from 0 to MAX_QUANTITY; ``None`` if it is not one."""
    try:
        number = int(text)
    except ValueError:
        return None

    return number if 0 <= number <= MAX_QUANTITY else None


def _limit_quantity(sku: str) -> int:
    """Take out what is too much, and give how much that was."""
    item = session["cart"]["items"][sku]
    surplus: int = max(item["quantity"] - MAX_QUANTITY, 0)
    item["quantity"] -= surplus
    return surplus


def _product_page(product: Product, quantity: str = "1", error: str = "") -> str:
    return render_template(
        "product.html",
        product=product,
        quantity=quantity,
        error=error,
        max_quantity=MAX_QUANTITY,
    )


def _cart_page(
    sent: t.Mapping[str, str] | None = None, wrong: t.Collection[str] = ()
) -> str:
    lines = _lines(cart_items())
    removed = [PRODUCTS[sku] for sku in session.get("removed", ()) if sku in PRODUCTS]
    return render_template(
        "cart.html",
        lines=lines,
        total=_total(lines),
        sent=sent or {},
        wrong=wrong,
        removed=removed,
        max_quantity=MAX_QUANTITY,
    )
