"""The table of names."""

import pytest

from rlhf_ray.algorithms.registry import Registry


@pytest.fixture
def colours() -> Registry[int]:
    registry: Registry[int] = Registry("colour", ("red", "blue", "green"))
    registry.register("red")(1)
    registry.register("blue")(2)
    return registry


def test_names_in_order_and_look_up(colours: Registry[int]) -> None:
    assert list(colours) == ["blue", "red"]
    assert colours["red"] == 1


def test_an_unknown_name_lists_the_names_and_the_nearest(colours: Registry[int]) -> None:
    with pytest.raises(ValueError) as error:
        colours["bleu"]
    assert str(error.value) == ("colour must be one of blue, red, got 'bleu'; did you mean 'blue'?")
    with pytest.raises(ValueError, match=r"got 'xyz'$"):
        colours["xyz"]


def test_a_name_is_taken_once(colours: Registry[int]) -> None:
    with pytest.raises(ValueError, match="colour 'red' is registered twice"):
        colours.register("red")


def test_a_name_without_a_row_is_refused(colours: Registry[int]) -> None:
    with pytest.raises(ValueError, match=r"colour 'pink' must have a row in .*algorithm_table\.py"):
        colours.register("pink")


def test_the_decorator_returns_what_it_was_given() -> None:
    registry: Registry[object] = Registry("function", "f")

    @registry.register("f")
    def f() -> int:
        return 3

    assert f() == 3
    assert registry["f"] is f
