"use strict";

// Tables: a click on a column's header sorts by that column. Numbers are in data-value; an empty
// one is NaN, which is always sorted to the end.
for (const table of document.querySelectorAll("table.sortable")) {
  const headers = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    if (!("value" in cell.dataset)) return cell.textContent.trim();
    return cell.dataset.value === "" ? NaN : Number(cell.dataset.value);
  };
  headers.forEach((header, column) => {
    header.querySelector("button").addEventListener("click", () => {
      const isDescending = header.getAttribute("aria-sort") === "ascending";
      for (const other of headers) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", isDescending ? "descending" : "ascending");
      const sign = isDescending ? -1 : 1;
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [valueOf(a, column), valueOf(b, column)];
        if (typeof x !== "number" || typeof y !== "number") return sign * String(x).localeCompare(String(y));
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
        return sign * (x - y);
      });
      body.append(...rows);
    });
  });
}

// Attention: redraw the bars if another layer or head is chosen.
const percent = (share, digits = 1) => (100 * share).toFixed(digits) + "%";
for (const figure of document.querySelectorAll(".strip[data-attention]")) {
  const data = JSON.parse(figure.querySelector("script").textContent);
  const [layer, head] = figure.querySelectorAll("select");
  const bars = [...figure.querySelectorAll(".attention rect")];
  const levelLines = figure.querySelectorAll(".attention line");
  const output = figure.querySelector("output");
  const mean = (lists) => lists[0].map((_, n) => lists.reduce((sum, one) => sum + one[n], 0) / lists.length);
  const draw = () => {
    const byHead = data.weights[layer.value], selfByHead = data.cls_to_cls[layer.value];
    const isMean = head.value === "mean";
    const weights = isMean ? mean(byHead) : byHead[head.value];
    const self = isMean ? selfByHead.reduce((a, b) => a + b) / selfByHead.length : selfByHead[head.value];
    const maximum = Math.max(...weights);
    const argmax = weights.indexOf(maximum);
    bars.forEach((bar, n) => {
      const height = maximum > 0 ? 100 * weights[n] / maximum : 0;
      bar.setAttribute("y", (100 - height).toFixed(2));
      bar.setAttribute("height", height.toFixed(2));
      bar.dataset.value = weights[n];
      bar.firstElementChild.textContent = `${data.begin[n].toFixed(2)} s: ${percent(weights[n], 2)}`;
    });
    const level = (1 - self) / weights.length;
    for (const line of levelLines) {
      line.setAttribute("y1", 100 - 100 * level / maximum);
      line.setAttribute("y2", 100 - 100 * level / maximum);
    }
    output.textContent = `maximum ${percent(maximum, 2)} at ${data.begin[argmax].toFixed(2)} s; dashed: uniform, ` +
      `${percent(level, 2)} per bar; [CLS] to itself ${percent(self)}`;
  };
  layer.addEventListener("change", draw);
  head.addEventListener("change", draw);
}

// Timelines: the keys + and - zoom about the middle of what is seen, and 0 shows the whole video.
for (const figure of document.querySelectorAll(".strip[data-zoom]")) {
  const view = figure.querySelector(".scroll");
  const along = figure.querySelector(".along");
  let zoom = 1;
  const zoomBy = (key) => {
    const middle = (view.scrollLeft + view.clientWidth / 2) / along.offsetWidth;
    zoom = key === "0" ? 1 : Math.min(64, Math.max(1, zoom * (key === "-" ? 1 / 1.5 : 1.5)));
    along.style.width = `${100 * zoom}%`;
    view.scrollLeft = middle * along.offsetWidth - view.clientWidth / 2;
  };
  view.addEventListener("keydown", (event) => {
    const key = event.key === "=" ? "+" : event.key;
    if (!["+", "-", "0"].includes(key) || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    zoomBy(key);
  });
  for (const button of figure.querySelectorAll(".controls button")) {
    button.addEventListener("click", () => zoomBy(button.value));
  }
}

// Whole confusion matrix on a canvas: one pixel or more per cell. The pointer or the arrow keys choose
// the cell that is described below it.
for (const part of document.querySelectorAll(".overview")) {
  const data = JSON.parse(part.querySelector("script").textContent);
  const canvas = part.querySelector("canvas");
  const output = part.querySelector("output");
  const order = part.querySelector("select");
  const count = data.classes.length;
  const cells = new Map(data.cells.map(([i, j, n]) => [i * count + j, n]));
  const size = Math.max(1, Math.floor(960 / count));
  canvas.width = canvas.height = size * count;
  const position = new Array(count);  // of each class, in rows and columns
  let classOrder = [], row = 0, column = 0, isChosen = false;
  const draw = () => {
    classOrder = data.orders[order.value];
    classOrder.forEach((index, n) => { position[index] = n; });
    const style = getComputedStyle(document.documentElement);
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, canvas.width, canvas.height);
    for (const [i, j, n] of data.cells) {
      const shade = style.getPropertyValue(i === j ? "--shade" : "--shade-wrong");
      context.fillStyle = `rgba(${shade}, ${(0.15 + 0.85 * Math.sqrt(n / data.totals[i])).toFixed(3)})`;
      context.fillRect(position[j] * size, position[i] * size, size, size);
    }
    if (!isChosen) return;
    context.strokeStyle = style.getPropertyValue("--text");
    context.lineWidth = 2;
    context.strokeRect(column * size - 3, row * size - 3, size + 6, size + 6);
  };
  const describe = () => {
    isChosen = true;
    draw();
    const [i, j] = [classOrder[row], classOrder[column]];
    const n = cells.get(i * count + j) || 0;
    const share = data.totals[i] ? ` (${percent(n / data.totals[i])})` : "";
    output.textContent = `${data.classes[i]} predicted as ${data.classes[j]}: ` +
      `${n} of ${data.totals[i]} ${data.unit}${share}`;
  };
  const clamp = (value) => Math.min(count - 1, Math.max(0, value));
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    column = clamp(Math.floor((event.clientX - box.left) / box.width * count));
    row = clamp(Math.floor((event.clientY - box.top) / box.height * count));
    describe();
  });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    row = clamp(row + step[0]);
    column = clamp(column + step[1]);
    describe();
  });
  order.addEventListener("change", () => (isChosen ? describe() : draw()));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
}
