"""Draw bars with their minimum and maximum, as an SVG that is readable on light and dark pages."""

from xml.etree import ElementTree

WIDTH, ROW, LEFT, RIGHT, TOP = 640, 36, 230, 90, 34
STYLE = (
    "text { font: 14px system-ui, sans-serif; fill: #1f2328 } "
    "rect { fill: #2f6fd0 } line { stroke: #1f2328; stroke-width: 2 } "
    "@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } rect { fill: #5b9bf5 } line { stroke: #e6edf3 } }"
)


def bars(title: str, rows: dict[str, dict[str, float]]) -> str:
    """Return an SVG with a bar as long as the median for each row, and a line from minimum to maximum."""
    height = TOP + ROW * len(rows)
    root = ElementTree.Element(
        "svg",
        {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {WIDTH} {height}", "width": str(WIDTH), "role": "img"},
    )
    ElementTree.SubElement(root, "title").text = title
    ElementTree.SubElement(root, "style").text = STYLE
    ElementTree.SubElement(root, "text", {"x": "0", "y": "18"}).text = title
    scale = (WIDTH - LEFT - RIGHT) / max(row["max"] for row in rows.values())
    for number, (name, row) in enumerate(rows.items()):
        top = TOP + ROW * number
        middle = str(top + ROW / 2 - 4)
        ElementTree.SubElement(root, "text", {"x": "0", "y": str(top + 19)}).text = name
        size = {"x": str(LEFT), "y": str(top), "width": f"{row['median'] * scale:.1f}", "height": str(ROW - 8)}
        ElementTree.SubElement(root, "rect", size)
        line_ends = {"x1": f"{LEFT + row['min'] * scale:.1f}", "x2": f"{LEFT + row['max'] * scale:.1f}"}
        ElementTree.SubElement(root, "line", line_ends | {"y1": middle, "y2": middle})
        at = {"x": f"{LEFT + row['max'] * scale + 8:.1f}", "y": str(top + 19)}
        ElementTree.SubElement(root, "text", at).text = f"{row['median']:,.0f}"
    return ElementTree.tostring(root, encoding="unicode") + "\n"
