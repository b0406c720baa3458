// Draws the charts, which the page holds as JSON, in the reader's theme, and answers the page's switches.
"use strict";

const json = (element) => JSON.parse(element.textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const scales = json(document.getElementById("scales"));
const style = getComputedStyle(document.documentElement);

// plotly's template in the colours of page.css.
function theme() {
  const [ink, paper] = ["--ink", "--paper"].map((name) => style.getPropertyValue(name).trim());
  const grey = "#808080", line = "rgba(128,128,128,.3)", clear = "rgba(0,0,0,0)";
  const axis = { gridcolor: line, linecolor: line, zerolinecolor: line, showline: true, title: { font: { size: 13 } } };
  return {
    layout: {
      font: { color: ink, family: "system-ui, sans-serif", size: 13 },
      paper_bgcolor: clear,
      plot_bgcolor: clear,
      xaxis: axis,
      yaxis: axis,
      hoverlabel: { bgcolor: paper, bordercolor: grey, font: { color: ink } },
      legend: { bgcolor: clear },
      modebar: { bgcolor: clear, color: grey, activecolor: ink },
    },
  };
}

// A finger that drags is to move the page, not to zoom into a chart.
const dragmode = matchMedia("(pointer: coarse)").matches ? false : "zoom";

const config = {
  responsive: true,
  displaylogo: false,
  displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false,
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
};

const charts = [...document.querySelectorAll(".chart")].filter((chart) => chart.querySelector(".plot"));
for (const chart of charts) {
  const plot = chart.querySelector(".plot");
  const { data, layout } = json(chart.querySelector("script"));
  Plotly.newPlot(plot, data, { ...layout, dragmode, template: theme() }, config);
  for (const button of chart.querySelectorAll("button")) {
    button.addEventListener("click", () => {
      const log = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", log);
      Plotly.relayout(plot, Object.fromEntries(
        Object.entries(scales[log ? "log" : "linear"]).map(([name, value]) => [`${button.dataset.axis}.${name}`, value]),
      ));
    });
  }
  for (const box of document.querySelectorAll("input[data-run]")) {
    const own = data.flatMap((trace, i) => (trace.meta?.run === Number(box.dataset.run) ? [i] : []));
    if (own.length) {
      box.addEventListener("change", () => {
        // A line that comes back is as visible as the legend has it, and then its own.
        const entry = (i) => plot.data.find((trace) => trace.legendgroup === data[i].legendgroup && !trace.meta);
        Plotly.restyle(plot, { visible: own.map((i) => box.checked && (entry(i)?.visible ?? true)) }, own);
      });
    }
  }
}
dark.addEventListener("change", () => {
  for (const chart of charts) Plotly.relayout(chart.querySelector(".plot"), { template: theme() });
});
