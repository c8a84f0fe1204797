// Wide tables scroll in their frame: the arrow keys reach them, and they have a name.
document$.subscribe(() =>
  requestAnimationFrame(() => {
    for (const frame of document.querySelectorAll(".md-typeset__scrollwrap, .wide")) {
      frame.tabIndex = 0;
      frame.setAttribute("role", "group");
      frame.setAttribute("aria-label", frame.matches(".wide") ? "Picture" : "Table");
    }
  }),
);
