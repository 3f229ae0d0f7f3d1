"use strict";

document.querySelector("[data-md-component=search]")?.setAttribute("aria-label", "Search");

/* Tables that scroll sideways can be scrolled by keyboard too. */
function reachTables() {
  for (const box of document.querySelectorAll(".md-typeset__scrollwrap")) {
    const scrolls = box.scrollWidth > box.clientWidth;
    for (const [name, value] of [["tabindex", "0"], ["role", "region"], ["aria-label", "Table"]]) {
      if (scrolls) box.setAttribute(name, value);
      else box.removeAttribute(name);
    }
  }
}
addEventListener("load", reachTables);
addEventListener("resize", reachTables);
