// What a page looks like, measured where it is shown: each function tells what is wrong, and nothing where nothing is.

function shown(selector) {
  return [...document.querySelectorAll(selector)].filter((one) => one.getClientRects().length);
}

// Elements that stand out of the window; what scrolls may hold wider ones.
function outside() {
  const width = document.documentElement.clientWidth;
  return shown("main *").filter((one) => !one.closest(".scroll") && !one.closest("svg")).filter((one) => {
    const box = one.getBoundingClientRect();
    return box.right > width + 1 || box.left < -1;
  }).map((one) => one.outerHTML.slice(0, 200));
}

// Numbers of the cards that are wider than their places, and run into what stands beside them.
function overfull() {
  return shown(".price dd").filter((one) => one.scrollWidth > one.clientWidth + 1).map((one) => one.textContent);
}

// Labels that a drawing's edge cuts.
function cut() {
  return shown("svg[role=img]").flatMap((drawing) => {
    const whole = drawing.getBoundingClientRect();
    return [...drawing.querySelectorAll("text")].filter((text) => {
      const box = text.getBoundingClientRect();
      return box.right > whole.right + 1 || box.left < whole.left - 1 || box.bottom > whole.bottom + 1;
    }).map((text) => text.textContent);
  });
}

// Labels that cover one another.
function covered() {
  const common = (start, size, one, two) =>
    Math.min(one[start] + one[size], two[start] + two[size]) - Math.max(one[start], two[start]);
  return shown("svg[role=img]").flatMap((drawing) => {
    const texts = [...drawing.querySelectorAll("text")].map((text) => [text.textContent, text.getBBox()]);
    return texts.flatMap(([a, one], number) => texts.slice(number + 1)
      .filter(([, two]) => common("x", "width", one, two) > 1 && common("y", "height", one, two) > 4)
      .map(([b]) => `${a} / ${b}`));
  });
}

// The smallest text of a drawing, in pixels of the page.
function smallest() {
  return Math.min(...shown("svg[role=img]").map((drawing) =>
    Number(drawing.getAttribute("font-size")) * drawing.getBoundingClientRect().width / drawing.viewBox.baseVal.width));
}

// Text whose contrast with what is behind it is below 4.5 (WCAG 2, AA).
function faint() {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\d.]+/g).slice(0, 3).map((part) => part / 255)
      .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (one) => {
    for (; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      if (!colour.startsWith("rgba(0, 0, 0, 0")) return light(colour);
    }
    return 1;
  };
  const has = (one) => [...one.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.textContent.trim());
  return shown("main *, header *").filter(has).filter((one) => {
    const style = getComputedStyle(one);
    const [ink, paper] = [light(one.closest("svg") ? style.fill : style.color), behind(one)];
    return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05) < 4.5;
  }).map((one) => one.outerHTML.slice(0, 120));
}
