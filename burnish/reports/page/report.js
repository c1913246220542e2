(() => {
  "use strict";
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const elements = [...document.querySelectorAll("[data-figure]")];
  let ready = false;

  // "$blue" in a figure stands for the style sheet's --blue, so one figure serves light mode, dark mode and print.
  const resolveColours = (value, style) => {
    if (typeof value === "string") return value.startsWith("$") ? style.getPropertyValue("--" + value.slice(1)).trim() : value;
    if (Array.isArray(value)) return typeof value[0] === "object" ? value.map((item) => resolveColours(item, style)) : value;
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, resolveColours(item, style)]));
    return value;
  };

  const axis = (more) => ({
    automargin: true, gridcolor: "$grid", linecolor: "$rule", zerolinecolor: "$rule", tickcolor: "$rule",
    exponentformat: "e", fixedrange: true, ...more,
  });

  const draw = (element) => {
    if (!ready || element.closest("details:not([open])")) return;
    const style = getComputedStyle(document.documentElement);
    const figure = figures[Number(element.dataset.figure)];
    const layout = {
      ...figure.layout,
      font: { family: style.getPropertyValue("--sans"), size: 11.5, color: "$muted" },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 44, r: 10, t: figure.layout.showlegend ? 26 : 8, b: 28 },
      hovermode: "x unified", dragmode: false,
      hoverlabel: { bgcolor: "$paper", bordercolor: "$rule", font: { color: "$ink" } },
      legend: { orientation: "h", traceorder: "normal", entrywidth: 48, x: 0, xanchor: "left", y: 1, yanchor: "bottom", font: { color: "$muted" } },
      xaxis: axis({ showgrid: false, rangemode: "nonnegative", nticks: 8, tickformat: "d", hoverformat: "d" }),
      yaxis: axis({ nticks: 6, zeroline: false, ...(figure.layout.yaxis || {}) }),
    };
    // react() may keep references to its arguments, so it gets a new copy each time.
    window.Plotly.react(element, resolveColours(figure.data, style), resolveColours(layout, style), { displayModeBar: false, responsive: true });
  };
  const drawAll = () => elements.forEach(draw);

  const load = async () => {
    const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent.trim()), (c) => c.charCodeAt(0));
    const source = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
    const script = document.createElement("script");
    script.textContent = source;
    document.head.append(script);
    if (!window.Plotly) throw new Error("the chart library did not start");
    elements.forEach((element) => element.replaceChildren());
    ready = true;
    drawAll();
    document.documentElement.dataset.charts = "drawn";
  };

  for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", drawAll);
  for (const fold of document.querySelectorAll("details")) fold.addEventListener("toggle", () => fold.querySelectorAll("[data-figure]").forEach(draw));
  if (elements.length)
    load().catch((error) => {
      document.documentElement.dataset.charts = "failed";
      elements.forEach((element) => { element.textContent = "This browser cannot draw the charts (" + error.message + "); the numbers are in the table below."; });
    });
})();
