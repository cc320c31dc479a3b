// Sorts and filters tables, and selects all calls at once. Without this script the page can still be read.
(function () {
  "use strict";

  document.querySelectorAll(".rlw-sortable").forEach(sortable);
  choosing(document.getElementById("rlw-calls-form"));

  function sortable(card) {
    var table = card.querySelector("table");
    var filter = card.querySelector(".rlw-filter");
    if (!table) {
      return;
    }
    var body = table.tBodies[0];
    filter.hidden = false;
    filter.querySelector("input").addEventListener("input", function (event) {
      var wanted = event.target.value.toLowerCase();
      Array.from(body.rows).forEach(function (row) {
        row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
      });
    });
    Array.from(table.tHead.rows[0].cells).forEach(function (head, column) {
      var button = document.createElement("button");
      button.type = "button";
      button.className = "rlw-sort";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", function () {
        var down = head.getAttribute("aria-sort") !== "descending";
        Array.from(table.tHead.rows[0].cells).forEach(function (other) { other.removeAttribute("aria-sort"); });
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        var rows = Array.from(body.rows).sort(function (one, other) {
          var a = value(one.cells[column]), b = value(other.cells[column]);
          return (a < b ? -1 : a > b ? 1 : 0) * (down ? -1 : 1);
        });
        body.append.apply(body, rows);
      });
    });
  }

  function value(cell) {
    return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent.trim().toLowerCase();
  }

  function choosing(form) {
    var all = document.getElementById("rlw-choose-all");
    var chosen = document.getElementById("rlw-chosen");
    if (!form || !all || !chosen) {
      return;
    }
    var boxes = Array.from(form.querySelectorAll("input[name=call]"));
    document.getElementById("rlw-all-label").hidden = !boxes.length;
    all.addEventListener("change", function () {
      boxes.forEach(function (box) { box.checked = all.checked; });
      count();
    });
    boxes.forEach(function (box) { box.addEventListener("change", count); });

    function count() {
      var number = boxes.filter(function (box) { return box.checked; }).length;
      all.checked = number === boxes.length;
      all.indeterminate = number > 0 && number < boxes.length;
      chosen.textContent = number ? number + " chosen" : "";
    }
  }
})();
